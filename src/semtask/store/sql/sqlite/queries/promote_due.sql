-- Earliest first. The planner is told the index: without statistics it would take jobs_state and sort.
UPDATE jobs SET state = 'QUEUED'
WHERE +state = 'SCHEDULED' AND seq IN (
    SELECT seq FROM jobs INDEXED BY jobs_due
    WHERE state = 'SCHEDULED' AND run_at <= :now
    ORDER BY run_at, seq
    LIMIT :limit
)
RETURNING run_at, seq, job_id, queue, job_type, execution_mode, claim_no
