-- The first entry of the index. Without the hint the planner would read all scheduled jobs through jobs_state.
SELECT min(run_at) FROM jobs INDEXED BY jobs_due WHERE state = State.SCHEDULED AND run_at IS NOT NULL
