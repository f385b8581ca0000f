-- :job_ids is a JSON array of hexadecimal ids.
SELECT jobs.*, (SELECT facts FROM claims WHERE id = jobs.claim) AS facts FROM jobs WHERE job_id IN (SELECT unhex(value) FROM json_each(:job_ids))
