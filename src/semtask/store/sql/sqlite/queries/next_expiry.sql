-- The first entry of the index.
SELECT min(expires_at) FROM jobs INDEXED BY jobs_expiry WHERE expires_at IS NOT NULL
