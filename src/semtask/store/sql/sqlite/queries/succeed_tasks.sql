-- The usual end of tasks, for many in one statement: :ends is a JSON array of [job_id in hexadecimal, claim_no, time, result,
-- artifacts, progress]. The guard: job_id, claim_no and state, and that nobody wants it stopped. The other columns of an end are
-- empty, because the claim has emptied them. Without the hint the planner would read all that runs for each end.
UPDATE jobs INDEXED BY jobs_id SET
    state = State.DONE, finished_at = report.value ->> 2, end_cause = EndCause.SUCCESS, attempts = attempts + 1,
    result = report.value ->> 3, artifacts = report.value ->> 4, progress = coalesce(report.value ->> 5, progress)
FROM json_each(:ends) AS report
WHERE job_id = unhex(report.value ->> 0) AND claim_no = report.value ->> 1 AND state = State.RUNNING
    AND stop_reason IS NULL AND execution_mode = ExecutionMode.IN_PROCESS
RETURNING job_id, queue, job_type, subject_key
