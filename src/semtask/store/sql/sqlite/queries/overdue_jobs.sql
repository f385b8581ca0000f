-- Whose time is over, longest ago first; `missed` says whether it was the deadline or the ttl.
SELECT deadline IS expires_at AS missed, seq, state, behind, job_id, queue, job_type, execution_mode, claim_no, subject_key
FROM jobs INDEXED BY jobs_expiry
WHERE expires_at <= :now
ORDER BY expires_at, seq
LIMIT :limit
