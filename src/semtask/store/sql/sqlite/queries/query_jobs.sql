-- A listing, of which the reader takes as much as it needs. {driver} is the comparison that an index answers in the
-- order of seq, {past} is < or >, and {direction} fits it; all three are fixed texts. The other filters are checked row
-- by row: the unary plus keeps the planner from choosing another index for them, which would have to sort.
SELECT jobs.*, (SELECT facts FROM claims WHERE id = jobs.claim) AS facts FROM jobs
WHERE {driver} AND seq {past} :after_seq AND seq > :oldest_seq
    AND (:states IS NULL OR +state IN (SELECT value FROM json_each(:states)))
    AND (:queues IS NULL OR +queue IN (SELECT value FROM json_each(:queues)))
    AND (:job_type IS NULL OR +job_type = :job_type)
    AND (:tag IS NULL OR +tag = :tag)
    AND (:chain_group_id IS NULL OR +chain_group_id = :chain_group_id)
    AND (:created_after IS NULL OR created_at > :created_after)
    AND (:subject_key_prefix IS NULL OR substr(subject_key, 1, length(:subject_key_prefix)) = :subject_key_prefix)
    AND (NOT :not_retried OR NOT EXISTS (
        SELECT 1 FROM jobs AS copy WHERE copy.retry_of = jobs.job_id AND copy.retry_of IS NOT NULL
    ))
    AND (:id_suffix IS NULL OR substr(hex(job_id), -length(:id_suffix)) = upper(:id_suffix))
ORDER BY seq {direction}
