SELECT job_id, queue, job_type, execution_mode, claim_no, subject_key FROM jobs WHERE seq = :seq
