-- The guard: seq, claim_no and state. What the last attempt left on the row goes; its own row keeps it.
UPDATE jobs SET
    state = 'RUNNING', claim_no = claim_no + 1, started_at = :now, node_id = :node_id, claim = :claim,
    process = NULL, kill_failed_at = NULL, exit_code = NULL, signal = NULL, error = NULL, progress = NULL
WHERE seq = :seq AND claim_no = :claim_no AND state = 'QUEUED'
    AND superseded_by IS NULL AND (expires_at IS NULL OR expires_at > :now)
    AND (subject_key IS NULL OR NOT EXISTS (
        SELECT 1 FROM jobs AS sibling
        WHERE sibling.job_type = jobs.job_type AND sibling.subject_key = jobs.subject_key
            AND sibling.subject_key IS NOT NULL AND sibling.state = 'RUNNING'
    ))
RETURNING *
