-- By which nothing runs any more. The last one stays, so that its number is not given out again.
DELETE FROM claims
WHERE id < (SELECT max(id) FROM claims) AND id NOT IN (SELECT claim FROM jobs WHERE state = State.RUNNING)
