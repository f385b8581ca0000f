-- A conflict (job_id, idempotency_key) inserts nothing; the caller compares the number of rows.
-- A job goes behind one of its lane that waits already and is not worse. One that a later job of the same request
-- supersedes is at its end from the start.
INSERT INTO jobs (
    seq, job_id, queue, job_type, execution_mode, state, priority, created_at, run_at, max_attempts, backoff_factor,
    retry_base_delay_ms, retry_max_delay_ms, timeout_ms, grace_ms, deadline, ttl_ms, on_interrupt, retry_on_crash,
    subject_key, generation, tag, chain_group_id, parent_job_id, retry_of, trace_context, idempotency_key,
    source, content_hash, payload, finished_at, end_cause, superseded_by, behind
) VALUES (
    :seq, :job_id, :queue, :job_type, :execution_mode, :state, :priority, :created_at, :run_at, :max_attempts,
    :backoff_factor, :retry_base_delay_ms, :retry_max_delay_ms, :timeout_ms, :grace_ms, :deadline, :ttl_ms,
    :on_interrupt, :retry_on_crash, :subject_key, :generation, :tag, :chain_group_id, :parent_job_id, :retry_of,
    :trace_context, :idempotency_key, :source, :content_hash, :payload, :finished_at, :end_cause, :superseded_by,
    iif(:subject_key IS NULL OR :state <> State.QUEUED, 0, EXISTS (
        SELECT 1 FROM jobs AS other
        WHERE other.job_type = :job_type AND other.subject_key = :subject_key
            AND other.execution_mode = :execution_mode AND other.queue = :queue
            AND other.state = State.QUEUED AND other.priority >= :priority
    ))
)
ON CONFLICT DO NOTHING
