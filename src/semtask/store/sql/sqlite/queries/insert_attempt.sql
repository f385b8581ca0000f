INSERT INTO attempts (
    seq, claim_no, started_at, finished_at, end_cause, exit_code, signal, error, stop_reason, pid, log_bytes, sandbox
) VALUES (
    :seq, :claim_no, :started_at, :finished_at, :end_cause, :exit_code, :signal, :error, :stop_reason, :pid, :log_bytes,
    :sandbox
)
