-- For a whole batch. :subjects is a JSON array of [job_type, subject_key, number of new jobs].
INSERT INTO subjects (job_type, subject_key, generation, jobs)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 2 FROM json_each(:subjects) WHERE true
ON CONFLICT (job_type, subject_key) DO UPDATE SET
    generation = generation + excluded.generation, jobs = jobs + excluded.jobs
RETURNING job_type, subject_key, generation
