-- A running job goes on, but it never waits again.
UPDATE jobs SET superseded_by = :superseded_by
WHERE seq = :seq AND claim_no = :claim_no AND state = State.RUNNING
