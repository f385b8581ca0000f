SELECT seq, claim_no FROM jobs WHERE state = 'RUNNING' ORDER BY seq
