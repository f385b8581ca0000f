-- A conflict (job_id, idempotency_key) inserts nothing; the caller compares the number of rows.
INSERT INTO jobs (
    seq, job_id, queue, job_type, execution_mode, state, priority, created_at, run_at, max_attempts, backoff_factor,
    retry_base_delay_ms, retry_max_delay_ms, timeout_ms, grace_ms, deadline, ttl_ms, on_interrupt, retry_on_crash,
    subject_key, generation, tag, chain_group_id, parent_job_id, retry_of, trace_context, idempotency_key,
    content_hash, payload
) VALUES (
    :seq, :job_id, :queue, :job_type, :execution_mode, :state, :priority, :created_at, :run_at, :max_attempts,
    :backoff_factor, :retry_base_delay_ms, :retry_max_delay_ms, :timeout_ms, :grace_ms, :deadline, :ttl_ms,
    :on_interrupt, :retry_on_crash, :subject_key, :generation, :tag, :chain_group_id, :parent_job_id, :retry_of,
    :trace_context, :idempotency_key, :content_hash, :payload
)
ON CONFLICT DO NOTHING
