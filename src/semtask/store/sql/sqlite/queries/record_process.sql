UPDATE jobs SET process = :process
WHERE job_id = :job_id AND claim_no = :claim_no AND state = State.RUNNING
RETURNING seq
