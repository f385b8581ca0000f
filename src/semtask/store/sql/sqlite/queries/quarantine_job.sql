-- A running job whose row cannot be decoded. What the claim and the process said may be the damage.
UPDATE jobs SET
    state = 'FAILED', finished_at = :now, end_cause = 'bad_payload', error = :error, claim = NULL, process = NULL
WHERE seq = :seq AND claim_no = :claim_no AND state = 'RUNNING'
RETURNING seq
