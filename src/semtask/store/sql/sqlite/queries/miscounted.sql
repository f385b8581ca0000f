-- Where the counts of a queue are not what there is: (queue, state, counted, there). One pass over the jobs.
WITH
kept (queue, state, jobs) AS (
    SELECT name, State.SCHEDULED, scheduled FROM queues
    UNION ALL SELECT name, State.QUEUED, queued FROM queues
    UNION ALL SELECT name, State.RUNNING, running FROM queues
    UNION ALL SELECT name, State.DONE, done FROM queues
    UNION ALL SELECT name, State.FAILED, failed FROM queues
    UNION ALL SELECT name, State.CANCELLED, cancelled FROM queues
    UNION ALL SELECT name, State.SUPERSEDED, superseded FROM queues
    UNION ALL SELECT name, State.SKIPPED_TTL, skipped_ttl FROM queues
    UNION ALL SELECT name, State.SKIPPED_DEADLINE, skipped_deadline FROM queues
),
there (queue, state, jobs) AS (SELECT queue, state, count(*) FROM jobs GROUP BY queue, state)
SELECT kept.queue, kept.state, kept.jobs, coalesce(there.jobs, 0)
FROM kept LEFT JOIN there USING (queue, state)
WHERE kept.jobs <> coalesce(there.jobs, 0)
