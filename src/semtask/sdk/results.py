"""The result of a job that has ended: as its task or command gives it, or the exception that says why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from semtask.errors import NotFound
from semtask.model.job import ExecutionMode
from semtask.model.state import EndCause
from semtask.protocol.jobs import JobView
from semtask.sdk.failures import JobFailed, failure_of

R = TypeVar("R")


@dataclass(frozen=True)
class CompletedCommand:
    """A command that ran to its end. `exit_code` is 128 + `signal` if a signal ended it."""

    job: JobView
    exit_code: int
    signal: int | None = None

    def check(self) -> CompletedCommand:
        """Itself, if the exit code is 0. Raises JobFailed otherwise."""
        if (failure := failure_of(self.job)) is not None:
            raise failure
        return self


def result_of(job: JobView, decode: Callable[[bytes], R]) -> R:
    """The result of a task. Raises JobError."""
    if (failure := failure_of(job)) is not None:
        raise failure
    for artifact in job.artifacts or ():
        if artifact.is_result:
            return decode(_read(artifact.path, job))
    return decode(msgspec.json.encode(job.result))


def command_of(job: JobView) -> CompletedCommand:
    """How a command ended by itself, whatever its exit code. Raises JobError if it did not."""
    if job.end_cause is EndCause.SIGNAL and job.signal is not None:
        return CompletedCommand(job, 128 + job.signal, job.signal)
    if job.end_cause in {EndCause.SUCCESS, EndCause.EXIT_CODE} and job.exit_code is not None:
        return CompletedCommand(job, job.exit_code)
    raise failure_of(job) or JobFailed(job, f"job {job.job_id} has no exit code")


def any_of(job: JobView) -> Any:
    """Of a job of which nothing but the id is known: a CompletedCommand, or the result of a task as plain JSON."""
    return command_of(job) if job.execution_mode is ExecutionMode.SUBPROCESS else result_of(job, msgspec.json.decode)


def _read(path: str, job: JobView) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"the file of the result of job {job.job_id} is gone: {path}") from error
