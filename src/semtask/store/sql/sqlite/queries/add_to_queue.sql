-- The kept counts: one statement per queue and transaction. A queue appears with its first job.
INSERT INTO queues (
    name, scheduled, queued, running, done, failed, cancelled, superseded, skipped_ttl, skipped_deadline
) VALUES (
    :name, :SCHEDULED, :QUEUED, :RUNNING, :DONE, :FAILED, :CANCELLED, :SUPERSEDED, :SKIPPED_TTL, :SKIPPED_DEADLINE
)
ON CONFLICT (name) DO UPDATE SET
    scheduled = scheduled + excluded.scheduled,
    queued = queued + excluded.queued,
    running = running + excluded.running,
    done = done + excluded.done,
    failed = failed + excluded.failed,
    cancelled = cancelled + excluded.cancelled,
    superseded = superseded + excluded.superseded,
    skipped_ttl = skipped_ttl + excluded.skipped_ttl,
    skipped_deadline = skipped_deadline + excluded.skipped_deadline
