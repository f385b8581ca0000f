SELECT seq, claim_no FROM jobs WHERE state = State.RUNNING ORDER BY seq
