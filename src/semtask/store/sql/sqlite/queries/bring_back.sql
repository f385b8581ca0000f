-- The best of a task that are set aside.
UPDATE jobs SET aside = 0
WHERE aside = 1 AND seq IN (
    SELECT seq FROM jobs WHERE job_type = :job_type AND aside = 1 ORDER BY priority DESC, seq LIMIT :limit
)
RETURNING expires_at, job_id, queue, job_type, execution_mode, claim_no, subject_key
