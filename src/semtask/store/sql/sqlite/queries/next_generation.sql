INSERT INTO subjects (job_type, subject_key, generation) VALUES (:job_type, :subject_key, 1)
ON CONFLICT (job_type, subject_key) DO UPDATE SET generation = generation + 1
RETURNING generation
