-- Since when the oldest QUEUED job of each queue, mode and priority waits, of those that are next in their lane
-- and not set aside. The entries of jobs_ready in between are skipped.
WITH RECURSIVE levels (queue, mode, priority) AS (
    SELECT queues.name, modes.mode, (
        SELECT max(priority) FROM jobs
        WHERE state = State.QUEUED AND behind = 0 AND aside = 0 AND execution_mode = modes.mode AND queue = queues.name
    )
    FROM queues CROSS JOIN (SELECT ExecutionMode.IN_PROCESS AS mode UNION ALL SELECT ExecutionMode.SUBPROCESS) AS modes
    WHERE queues.queued > 0
    UNION ALL
    SELECT levels.queue, levels.mode, (
        SELECT max(priority) FROM jobs
        WHERE state = State.QUEUED AND behind = 0 AND aside = 0 AND execution_mode = levels.mode AND queue = levels.queue
            AND priority < levels.priority
    )
    FROM levels
    WHERE levels.priority IS NOT NULL
)
SELECT queue, (
    SELECT max(created_at, coalesce(run_at, 0)) FROM jobs
    WHERE state = State.QUEUED AND behind = 0 AND aside = 0 AND execution_mode = levels.mode AND queue = levels.queue
        AND priority = levels.priority
    ORDER BY seq LIMIT 1
)
FROM levels
WHERE priority IS NOT NULL
