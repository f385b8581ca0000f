-- The head of a lane has left: the best one behind it may be looked at.
UPDATE jobs SET behind = 0
WHERE behind = 1 AND seq = (
    SELECT seq FROM jobs
    WHERE job_type = :job_type AND subject_key = :subject_key AND execution_mode = :mode AND queue = :queue
        AND state = 'QUEUED'
    ORDER BY priority DESC, seq
    LIMIT 1
)
