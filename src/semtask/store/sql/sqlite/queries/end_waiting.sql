-- Every end of a job that waits. The guard: seq, claim_no and state.
UPDATE jobs SET
    state = :state, finished_at = :now, end_cause = :end_cause, superseded_by = :superseded_by, behind = 0,
    aside = 0
WHERE seq = :seq AND claim_no = :claim_no AND state = :before AND state IN (State.SCHEDULED, State.QUEUED)
