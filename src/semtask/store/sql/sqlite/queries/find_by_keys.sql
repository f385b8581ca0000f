-- One look-up for a whole batch. :keys is a JSON array.
SELECT idempotency_key, content_hash, job_id, queue, state, generation
FROM jobs
WHERE idempotency_key IN (SELECT value FROM json_each(:keys)) AND idempotency_key IS NOT NULL
