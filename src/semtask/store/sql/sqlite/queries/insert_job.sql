-- {columns} are those that some job of the batch fills. A conflict (job_id, idempotency_key) inserts nothing; the caller
-- compares the number of rows.
INSERT INTO jobs ({columns}) VALUES ({values})
ON CONFLICT DO NOTHING
