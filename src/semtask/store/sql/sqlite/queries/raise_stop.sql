-- Guarded by the reason that was seen as well: it may only be raised.
UPDATE jobs SET stop_reason = :reason, stop_grace_ms = :grace_ms
WHERE seq = :seq AND claim_no = :claim_no AND state = State.RUNNING AND stop_reason IS :present
RETURNING seq
