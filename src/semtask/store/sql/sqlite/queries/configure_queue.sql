INSERT INTO queues (name, paused, concurrency, queue_class, sandbox)
VALUES (:name, coalesce(:paused, 0), :concurrency, coalesce(:queue_class, 'normal'), coalesce(:sandbox, 'none'))
ON CONFLICT (name) DO UPDATE SET
    paused = coalesce(:paused, paused),
    concurrency = iif(:keep_concurrency, concurrency, excluded.concurrency),
    queue_class = coalesce(:queue_class, queue_class),
    sandbox = coalesce(:sandbox, sandbox)
