-- The job that a new one of its subject may join: neither superseded nor being stopped; :any_live drops that condition.
SELECT job_id, queue, state, generation
FROM jobs
WHERE job_type = :job_type AND subject_key = :subject_key AND finished_at IS NULL
    AND (:any_live OR (superseded_by IS NULL AND stop_reason IS NULL))
ORDER BY seq DESC
LIMIT 1
