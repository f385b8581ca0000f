UPDATE jobs SET progress = :progress
WHERE job_id = :job_id AND claim_no = :claim_no AND state = State.RUNNING
