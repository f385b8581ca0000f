SELECT claim_no, started_at, finished_at, end_cause, exit_code, signal, error, stop_reason, pid, log_bytes, sandbox
FROM attempts
WHERE seq = (SELECT seq FROM jobs WHERE job_id = :job_id)
ORDER BY claim_no
