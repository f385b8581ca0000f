"""Times of a job, from its fields. All epoch milliseconds by the wall clock."""

from __future__ import annotations

from semtask.model.job import Job, NewJob
from semtask.model.state import State


def queued_since(job: Job | NewJob) -> int:
    """When a job became due, or will: ttl_ms and the wait for a slot run from here."""
    return max(job.created_at, job.run_at or 0)


def expires_at(job: Job | NewJob, state: State, claim_no: int) -> int | None:
    """When waiting in `state` ends by itself: the deadline, or the ttl of a job that was never claimed."""
    if (job.deadline is None and job.ttl_ms is None) or (state is not State.QUEUED and state is not State.SCHEDULED):
        return None
    times = [job.deadline] if job.deadline is not None else []
    if job.ttl_ms is not None and claim_no == 0 and state is State.QUEUED:
        times.append(queued_since(job) + job.ttl_ms)
    return min(times, default=None)
