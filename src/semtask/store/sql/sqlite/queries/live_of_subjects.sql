-- What lives of the subjects of a batch. :subjects is a JSON array of [job_type, subject_key]; without the hint the
-- planner would read all live jobs.
SELECT seq, state, behind, grace_ms, stop_reason, stop_grace_ms,
    job_id, queue, jobs.job_type, execution_mode, claim_no, jobs.subject_key
FROM json_each(:subjects) AS subject CROSS JOIN jobs INDEXED BY jobs_subject
WHERE jobs.job_type = subject.value ->> 0 AND jobs.subject_key = subject.value ->> 1
    AND jobs.subject_key IS NOT NULL AND finished_at IS NULL
ORDER BY seq
