INSERT INTO queues (name, paused, concurrency) VALUES (:name, coalesce(:paused, 0), :concurrency)
ON CONFLICT (name) DO UPDATE SET
    paused = coalesce(:paused, paused),
    concurrency = iif(:keep_concurrency, concurrency, excluded.concurrency)
