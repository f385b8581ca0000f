-- What waits and is named by {selector}, a comparison of one indexed column with :value.
SELECT seq, state, behind, job_id, queue, job_type, execution_mode, claim_no, subject_key
FROM jobs
WHERE {selector} AND state IN (State.SCHEDULED, State.QUEUED)
ORDER BY seq
