-- One claim or many: :picks is a JSON array of [seq, claim_no], which together with the state are the guard.
-- What the last attempt left on the row goes; its own row keeps it. Answers with what the claim does not set itself.
-- Without the hint the planner would go by way of jobs_state.
UPDATE jobs NOT INDEXED SET
    state = State.RUNNING, claim_no = claim_no + 1, started_at = :now, node_id = :node_id, claim = :claim,
    process = NULL, kill_failed_at = NULL, exit_code = NULL, signal = NULL, error = NULL, exception = NULL,
    result = NULL, artifacts = NULL, progress = NULL
WHERE (seq, claim_no) IN (SELECT value ->> 0, value ->> 1 FROM json_each(:picks)) AND state = State.QUEUED
    AND superseded_by IS NULL AND (expires_at IS NULL OR expires_at > :now)
    AND (subject_key IS NULL OR NOT EXISTS (
        SELECT 1 FROM jobs AS sibling
        WHERE sibling.job_type = jobs.job_type AND sibling.subject_key = jobs.subject_key
            AND sibling.subject_key IS NOT NULL AND sibling.state = State.RUNNING
    ))
RETURNING seq, job_id, queue, job_type, execution_mode, priority, claim_no, attempts, failures, crashes, interruptions,
    created_at, run_at, max_attempts, backoff_factor, retry_base_delay_ms, retry_max_delay_ms, timeout_ms, grace_ms,
    deadline, ttl_ms, on_interrupt, retry_on_crash, subject_key, generation, tag, chain_group_id, parent_job_id,
    retry_of, trace_context, idempotency_key, source, content_hash, payload
