UPDATE subjects SET jobs = jobs - :jobs WHERE job_type = :job_type AND subject_key = :subject_key
