-- A running job whose row cannot be decoded. What the claim and the process said may be the damage.
UPDATE jobs SET
    state = State.FAILED, finished_at = :now, end_cause = EndCause.BAD_PAYLOAD, error = :error, claim = NULL, process = NULL
WHERE seq = :seq AND claim_no = :claim_no AND state = State.RUNNING
RETURNING seq
