-- Candidates of one queue, best first, straight from the index jobs_ready. Of a lane it has only the head, so that no
-- more rows are passed over than jobs run. Texts come as bytes: a damaged one must not stop the listing. The conditions are those of claim_job.sql: what is listed can be claimed.
SELECT -priority, seq, queue, job_id, claim_no, CAST(job_type AS BLOB), CAST(subject_key AS BLOB), on_interrupt
FROM jobs
WHERE state = State.QUEUED AND behind = 0 AND aside = 0
    AND execution_mode = :mode AND queue = :queue AND priority >= :min_priority
    AND (expires_at IS NULL OR expires_at > :now)
    AND (subject_key IS NULL OR NOT EXISTS (
        SELECT 1 FROM jobs AS sibling
        WHERE sibling.job_type = jobs.job_type AND sibling.subject_key = jobs.subject_key
            AND sibling.subject_key IS NOT NULL AND sibling.state = State.RUNNING
    ))
    AND NOT EXISTS (SELECT 1 FROM queues WHERE name = :queue AND paused)
ORDER BY priority DESC, seq
LIMIT :limit
