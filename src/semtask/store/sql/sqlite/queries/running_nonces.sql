-- By which what runs is known in the process table.
SELECT DISTINCT json_extract(coalesce((SELECT facts FROM claims WHERE id = jobs.claim), claim), '$.nonce')
FROM jobs WHERE state = State.RUNNING
