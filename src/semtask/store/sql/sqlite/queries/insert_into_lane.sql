-- As insert_job.sql, for a batch with subjects: a job goes behind one of its lane that waits already and is not worse.
-- One that a later job of the same request supersedes is at its end from the start.
INSERT INTO jobs ({columns}, behind) VALUES (
    {values},
    iif(:subject_key IS NULL OR :state <> State.QUEUED, 0, EXISTS (
        SELECT 1 FROM jobs AS other
        WHERE other.job_type = :job_type AND other.subject_key = :subject_key
            AND other.execution_mode = :execution_mode AND other.queue = :queue
            AND other.state = State.QUEUED AND other.priority >= :priority
    ))
)
ON CONFLICT DO NOTHING
