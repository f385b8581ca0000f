-- Candidates of one queue, best first, straight from the index jobs_ready.
-- The conditions on siblings and superseded rows are those of claim_job.sql: what is listed here can be claimed.
SELECT -priority, seq, queue, job_id, claim_no
FROM jobs
WHERE state = 'QUEUED' AND execution_mode = :mode AND queue = :queue
    AND superseded_by IS NULL
    AND (subject_key IS NULL OR NOT EXISTS (
        SELECT 1 FROM jobs AS sibling
        WHERE sibling.job_type = jobs.job_type AND sibling.subject_key = jobs.subject_key
            AND sibling.subject_key IS NOT NULL AND sibling.state = 'RUNNING'
    ))
    AND NOT EXISTS (SELECT 1 FROM queues WHERE name = :queue AND paused)
ORDER BY priority DESC, seq
LIMIT :limit
