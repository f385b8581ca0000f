"""How a job ended that did not succeed, as an exception for the one who waits for its result."""

from __future__ import annotations

from typing import Any

from semtask.errors import SemtaskError
from semtask.model.state import EndCause, State
from semtask.protocol.jobs import ExceptionView, JobView


class JobError(SemtaskError):
    """A job ended without a result. `job` is what the daemon knows about it."""

    def __init__(self, job: JobView, message: str) -> None:
        super().__init__(message)
        self.job = job

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job, str(self))  # as multiprocessing hands it on

    @property
    def job_id(self) -> str:
        return self.job.job_id

    @property
    def end_cause(self) -> EndCause | None:
        return self.job.end_cause


class JobFailed(JobError):
    """The job failed for good. Its text has the traceback of the task, where that raised an exception."""

    @property
    def exception(self) -> ExceptionView | None:
        """What the task raised: its type, message, traceback and cause; None if it ended otherwise."""
        return self.job.exception

    @property
    def traceback(self) -> str:
        """Python's traceback in the worker; empty without an exception."""
        return self.exception.traceback if self.exception else ""

    @property
    def cause(self) -> ExceptionView | None:
        """What the exception was raised from."""
        return self.exception.cause if self.exception else None


class JobTimeout(JobFailed):
    """The job was ended because its timeout or its deadline passed while it ran."""


class JobCancelled(JobError):
    """The job was cancelled, or cancelled itself."""


class JobSuperseded(JobError):
    """A newer job of the same subject took its place: `superseded_by`."""

    @property
    def superseded_by(self) -> str | None:
        return self.job.superseded_by


class JobExpired(JobError):
    """The job never ran: its ttl or its deadline passed before."""


def failure_of(job: JobView) -> JobError | None:
    """The exception for the end of a job; None for one that succeeded."""
    name = f"job {job.job_id} ({job.job_type})"
    match job.state:
        case State.DONE:
            return None
        case State.CANCELLED:
            return JobCancelled(job, f"{name} was cancelled{_visible(_because(job.error))}")
        case State.SUPERSEDED:
            return JobSuperseded(job, f"{name} was superseded by the newer job {job.superseded_by} of its subject")
        case State.SKIPPED_TTL:
            return JobExpired(job, f"{name} did not start within its ttl of {_seconds(job.ttl_ms)}")
        case State.SKIPPED_DEADLINE:
            return JobExpired(job, f"{name} did not start before its deadline")
    if job.end_cause in {EndCause.TIMEOUT, EndCause.DEADLINE}:
        return JobTimeout(job, f"{name} was ended: {_visible(job.error or str(job.end_cause))}{_remote(job.exception)}")
    return JobFailed(job, f"{name} failed: {_what(job)}{_remote(job.exception)}")


def _because(error: str | None) -> str:
    return f": {error}" if error else ""


def _seconds(duration_ms: int | None) -> str:
    return f"{(duration_ms or 0) / 1000:g} s"


def _what(job: JobView) -> str:
    if job.exception is not None:
        return _visible(f"{job.exception.type}: {job.exception.message}")
    return _visible(job.error or str(job.end_cause))


def _remote(exception: ExceptionView | None) -> str:
    return f"\n\nIn the worker:\n{_visible(exception.traceback.rstrip())}" if exception and exception.traceback else ""


def _visible(text: str) -> str:
    """For a text that Python prints as it is: what would steer a terminal as an escape such as \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
