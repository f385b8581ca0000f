-- Claims do not look at it any more.
UPDATE jobs SET aside = 1
WHERE seq = :seq AND claim_no = :claim_no AND state = State.QUEUED
