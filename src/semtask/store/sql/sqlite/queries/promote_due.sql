-- Earliest first. The planner is told the index: without statistics it would take jobs_state and sort.
-- A job goes behind a better one of its lane that waits already.
UPDATE jobs SET state = State.QUEUED, behind = iif(subject_key IS NULL, 0, EXISTS (
    SELECT 1 FROM jobs AS other
    WHERE other.job_type = jobs.job_type AND other.subject_key = jobs.subject_key
        AND other.execution_mode = jobs.execution_mode AND other.queue = jobs.queue
        AND other.subject_key IS NOT NULL AND other.state = State.QUEUED
        AND (other.priority > jobs.priority OR (other.priority = jobs.priority AND other.seq < jobs.seq))
))
WHERE +state = State.SCHEDULED AND seq IN (
    SELECT seq FROM jobs INDEXED BY jobs_due
    WHERE state = State.SCHEDULED AND run_at <= :now
    ORDER BY run_at, seq
    LIMIT :limit
)
RETURNING run_at, seq, expires_at, job_id, queue, job_type, execution_mode, claim_no, subject_key
