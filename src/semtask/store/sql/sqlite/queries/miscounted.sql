-- Where the counts of a queue are not what there is: (queue, state, counted, there). One pass over the jobs.
WITH
kept (queue, state, jobs) AS (
    SELECT name, 'SCHEDULED', scheduled FROM queues
    UNION ALL SELECT name, 'QUEUED', queued FROM queues
    UNION ALL SELECT name, 'RUNNING', running FROM queues
    UNION ALL SELECT name, 'DONE', done FROM queues
    UNION ALL SELECT name, 'FAILED', failed FROM queues
    UNION ALL SELECT name, 'CANCELLED', cancelled FROM queues
    UNION ALL SELECT name, 'SUPERSEDED', superseded FROM queues
    UNION ALL SELECT name, 'SKIPPED_TTL', skipped_ttl FROM queues
    UNION ALL SELECT name, 'SKIPPED_DEADLINE', skipped_deadline FROM queues
),
there (queue, state, jobs) AS (SELECT queue, state, count(*) FROM jobs GROUP BY queue, state)
SELECT kept.queue, kept.state, kept.jobs, coalesce(there.jobs, 0)
FROM kept LEFT JOIN there USING (queue, state)
WHERE kept.jobs <> coalesce(there.jobs, 0)
