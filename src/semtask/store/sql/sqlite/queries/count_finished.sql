-- From the kept counts.
SELECT coalesce(sum(done + failed + cancelled + superseded + skipped_ttl + skipped_deadline), 0) FROM queues
