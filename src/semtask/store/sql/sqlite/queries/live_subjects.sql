-- Which subjects of a batch have live jobs. :subjects is a JSON array of [job_type, subject_key].
SELECT subject.value ->> 0, subject.value ->> 1
FROM json_each(:subjects) AS subject
WHERE EXISTS (
    SELECT 1 FROM jobs
    WHERE job_type = subject.value ->> 0 AND subject_key = subject.value ->> 1
        AND subject_key IS NOT NULL AND finished_at IS NULL
)
