"""Claimed jobs as they are sent to their worker."""

from __future__ import annotations

from collections.abc import Sequence

from semtask.model.job import Job
from semtask.protocol.frames import Call

_BATCH_BYTES = 16 * 1024 * 1024  # a Run is no longer than this and one payload


def batches(jobs: Sequence[Job]) -> Sequence[Sequence[Job]]:
    """The jobs in their order, in parts that go into one frame each."""
    if sum(len(job.payload) for job in jobs) <= _BATCH_BYTES:
        return (jobs,)
    parts: list[list[Job]] = [[]]
    size = 0
    for job in jobs:
        if parts[-1] and size + len(job.payload) > _BATCH_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(job)
        size += len(job.payload)
    return parts


def call_of(job: Job) -> Call:
    """A claimed job as it is sent to its worker."""
    return Call(
        job_id=job.job_id,
        claim_no=job.claim_no,
        task=job.job_type,
        payload=job.payload,
        attempt=job.attempts + 1,
        max_attempts=job.max_attempts,
        queue=job.queue,
        timeout_ms=job.timeout_ms,
        deadline=job.deadline,
        traceparent=job.trace_context,
        tag=job.tag,
        subject_key=job.subject_key,
        source=job.source,
    )
