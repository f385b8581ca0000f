DELETE FROM subjects WHERE (job_type, subject_key) IN (
    SELECT job_type, subject_key FROM subjects INDEXED BY subjects_unused WHERE jobs = 0 LIMIT :limit
) AND jobs = 0
RETURNING 1
