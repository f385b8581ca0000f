-- The heads of these lanes have left: the best job behind each may be looked at.
-- :lanes is a JSON array of [job_type, subject_key, execution_mode, queue].
UPDATE jobs SET behind = 0
WHERE behind = 1 AND seq IN (
    SELECT (
        SELECT seq FROM jobs
        WHERE job_type = lane.value ->> 0 AND subject_key = lane.value ->> 1 AND execution_mode = lane.value ->> 2
            AND queue = lane.value ->> 3 AND subject_key IS NOT NULL AND state = State.QUEUED
        ORDER BY priority DESC, seq
        LIMIT 1
    )
    FROM json_each(:lanes) AS lane
)
RETURNING seq, expires_at, job_id, queue, job_type, execution_mode, claim_no, subject_key
