-- By which what runs is known in the process table.
SELECT DISTINCT json_extract(claim, '$.nonce') FROM jobs WHERE state = State.RUNNING
