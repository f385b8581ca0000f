-- A restored job must not be claimed under a number that is taken on disk.
UPDATE jobs SET claim_no = :claim_no WHERE job_id = :job_id AND claim_no < :claim_no AND finished_at IS NULL
