-- The first time counts: since when a process cannot be ended.
UPDATE jobs SET kill_failed_at = coalesce(kill_failed_at, :at)
WHERE job_id = :job_id AND claim_no = :claim_no AND state = State.RUNNING
RETURNING seq
