-- The tasks of which jobs are set aside: the entries of jobs_aside in between are skipped.
WITH RECURSIVE tasks (job_type) AS (
    SELECT min(job_type) FROM jobs WHERE aside = 1
    UNION ALL
    SELECT (SELECT min(job_type) FROM jobs WHERE aside = 1 AND job_type > tasks.job_type)
    FROM tasks WHERE job_type IS NOT NULL
)
SELECT job_type FROM tasks WHERE job_type IS NOT NULL
