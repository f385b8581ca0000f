-- What a stop request has to look at. {selector} as in waiting_of.sql.
SELECT seq, grace_ms, stop_reason, stop_grace_ms, job_id, queue, job_type, execution_mode, claim_no, subject_key
FROM jobs
WHERE {selector} AND state = State.RUNNING
ORDER BY seq
