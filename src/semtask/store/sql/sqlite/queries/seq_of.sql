SELECT seq FROM jobs WHERE job_id = :job_id
