-- One state at a time, because RETURNING shows only the new row and the counters need the old state.
-- {selector} is a comparison of one indexed column with :value.
UPDATE jobs SET state = 'CANCELLED', finished_at = :now, end_cause = 'cancelled'
WHERE {selector} AND state = :state AND state IN ('SCHEDULED', 'QUEUED')
RETURNING seq, job_id, queue, job_type, execution_mode, claim_no
