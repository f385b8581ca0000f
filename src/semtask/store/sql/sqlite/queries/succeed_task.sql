-- The usual end of a task. The guard: job_id, claim_no and state, and that nobody wants it stopped.
-- The other columns of an end are empty: its claim has emptied them.
UPDATE jobs SET
    state = 'DONE', finished_at = :now, end_cause = 'success', attempts = attempts + 1,
    result = :result, artifacts = :artifacts, progress = coalesce(:progress, progress)
WHERE job_id = :job_id AND claim_no = :claim_no AND state = 'RUNNING'
    AND stop_reason IS NULL AND execution_mode = 'IN_PROCESS'
RETURNING :index, queue, job_type, subject_key
