-- :job_ids is a JSON array of hexadecimal ids.
SELECT * FROM jobs WHERE job_id IN (SELECT unhex(value) FROM json_each(:job_ids))
