-- A late report of an old claim matches nothing.
UPDATE jobs SET
    state = :state, run_at = :run_at, started_at = :started_at, finished_at = :finished_at,
    end_cause = :end_cause, exit_code = :exit_code, signal = :signal, error = :error,
    exception = :exception, result = :result, artifacts = :artifacts, progress = coalesce(:progress, progress),
    stop_reason = :stop_reason, stop_grace_ms = :stop_grace_ms, kill_failed_at = :kill_failed_at,
    attempts = attempts + :attempts, failures = failures + :failures,
    crashes = crashes + :crashes, interruptions = interruptions + :interruptions
WHERE seq = :seq AND claim_no = :claim_no AND state = State.RUNNING
RETURNING seq
