SELECT coalesce(sum(running), 0), coalesce(sum(queued + scheduled), 0) FROM queues
