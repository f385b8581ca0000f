-- Finished jobs, oldest end first; `named` says that a live job points to this one, as its parent or as what it retries.
SELECT finished_at, seq,
    EXISTS (
        SELECT 1 FROM jobs AS child
        WHERE child.parent_job_id = jobs.job_id AND child.parent_job_id IS NOT NULL
            AND child.finished_at IS NULL
    ) OR EXISTS (
        SELECT 1 FROM jobs AS copy
        WHERE copy.retry_of = jobs.job_id AND copy.retry_of IS NOT NULL
            AND copy.finished_at IS NULL
    ) AS named,
    job_id, claim_no, queue, state, job_type, subject_key
FROM jobs INDEXED BY jobs_finished
WHERE finished_at IS NOT NULL AND (finished_at, seq) > (:after, :after_seq)
ORDER BY finished_at, seq
LIMIT :limit
