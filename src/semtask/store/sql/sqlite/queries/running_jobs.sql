SELECT * FROM jobs WHERE state = State.RUNNING ORDER BY seq
