"""What a task can know and say about the job that it runs: `current_job()`."""

from __future__ import annotations

import contextvars
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import EllipsisType
from typing import Protocol

from semtask.protocol.frames import ArtifactInfo, Call, ProgressInfo
from semtask.tasks.artifacts import ArtifactFolder, ArtifactLimits
from semtask.tasks.control import Interrupted

PROGRESS_INTERVAL_S = 0.25
_MAX_TEXT = 1000


class Channel(Protocol):
    """What a context needs from whoever runs the job. Called from any thread of it."""

    def progress(self, job: JobContext, progress: ProgressInfo) -> None: ...

    def blocked(self, job: JobContext, on: Sequence[str]) -> None:
        """The job waits for these jobs; none: it goes on."""
        ...

    def look_for_stop(self, job: JobContext) -> None:
        """Set `job.stop_reason` if the job was told to stop meanwhile. Must not wait."""
        ...


class JobContext:
    """The job that runs. Its facts do not change while it does; times are epoch ms, durations ms.

    `stop_reason` (a model.state.StopReason) is set once the job is being stopped. `last_progress` and `artifacts` are
    what it has said so far.
    """

    __slots__ = (
        "__weakref__",
        "_artifact_limits",
        "_artifacts_dir",
        "_call",
        "_channel",
        "_ended",
        "_lock",
        "_monotonic",
        "_next_progress",
        "_waits",
        "artifacts",
        "last_progress",
        "stop_reason",
    )

    def __init__(
        self,
        call: Call,
        channel: Channel,
        artifacts_dir: str,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        artifact_limits: ArtifactLimits = ArtifactLimits(),  # noqa: B008 - a constant
    ) -> None:
        self._call = call
        self._channel = channel
        self._artifacts_dir = artifacts_dir
        self._artifact_limits = artifact_limits
        self._monotonic = monotonic
        self._next_progress = -math.inf
        self._waits: Counter[str] | None = None
        self._lock: threading.Lock | None = None
        self._ended = False
        self.artifacts: dict[str, ArtifactInfo] = {}
        self.last_progress: ProgressInfo | None = None
        self.stop_reason: str | None = None

    def __repr__(self) -> str:
        return f"<JobContext of job {self.job_id}, task {self.task!r}, attempt {self.attempt}>"

    @property
    def job_id(self) -> str:
        return self._call.job_id

    @property
    def claim_no(self) -> int:
        return self._call.claim_no

    @property
    def task(self) -> str:
        return self._call.task

    @property
    def attempt(self) -> int:
        """Which execution of the job this is, counting from 1."""
        return self._call.attempt

    @property
    def max_attempts(self) -> int:
        return self._call.max_attempts

    @property
    def queue(self) -> str:
        return self._call.queue

    @property
    def timeout_ms(self) -> int | None:
        return self._call.timeout_ms

    @property
    def deadline(self) -> int | None:
        return self._call.deadline

    @property
    def traceparent(self) -> str | None:
        return self._call.traceparent

    @property
    def tag(self) -> str | None:
        return self._call.tag

    @property
    def subject_key(self) -> str | None:
        return self._call.subject_key

    @property
    def log(self) -> logging.Logger:
        """The logger of the module of the task. What goes to any logger goes to the job's log."""
        return logging.getLogger(self.task.partition(":")[0])

    def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Say how far the job is. Cheap: at most four times a second it is sent, and the last one is always kept.

        Raises ValueError for what is no finite number, RuntimeError after the job's end and in a forked child of it.
        """
        if not math.isfinite(done) or (total is not None and not math.isfinite(total)):
            raise ValueError(f"progress needs finite numbers, not done={done!r}, total={total!r}")
        self._require_running()
        if text is not None:
            text = str(text)[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()
        self.last_progress = ProgressInfo(done=float(done), total=None if total is None else float(total), text=text)
        now = self._monotonic()
        if now >= self._next_progress:
            self._next_progress = now + PROGRESS_INTERVAL_S
            self._channel.progress(self, self.last_progress)

    def check_cancelled(self) -> None:
        """Raises Interrupted if the job is being stopped: cancelled, superseded, out of time, or shut down."""
        if self.stop_reason is None and not self._ended:
            self._channel.look_for_stop(self)
        if self.stop_reason is not None:
            raise Interrupted(self.stop_reason)

    def artifact(self, name: str, data: bytes | str | os.PathLike[str]) -> ArtifactInfo:
        """Keep a file with the job: these bytes, this text (as UTF-8), or a copy of the file at this path.

        `name`: 1 to 128 letters, digits, dots, dashes and underscores. Given again, it replaces the former. The file
        at the path is copied as long as it is when it is opened. Raises ValueError for a bad name, for a path that
        leads to no regular file (a named pipe, a device), and for what is over a limit (max_artifact_bytes,
        max_job_artifact_bytes, max_job_artifacts); OSError for what cannot be read or written.
        """
        self._require_running()
        info = ArtifactFolder(self._artifacts_dir, self.job_id, self._artifact_limits).keep(name, data)
        self.artifacts[name] = info
        return info

    @contextmanager
    def blocked(self, on: Sequence[str]) -> Iterator[None]:
        """While this waits for other jobs, so does the job: it counts in no limit of concurrency."""
        self._require_running()
        if self._lock is None:
            self._lock, self._waits = threading.Lock(), Counter()
        self._wait_for(on, 1)
        try:
            yield
        finally:
            self._wait_for(on, -1)

    def _wait_for(self, on: Sequence[str], number: int) -> None:
        assert self._lock is not None
        assert self._waits is not None
        with self._lock:
            for job_id in on:
                self._waits[job_id] += number
            if not self._ended:
                self._channel.blocked(self, [job_id for job_id, waits in self._waits.items() if waits > 0])

    def _require_running(self) -> None:
        if self._ended:
            raise RuntimeError(f"the job {self.job_id} has ended; a thread that outlives its job cannot speak for it")

    @property
    def ended(self) -> bool:
        return self._ended

    def end(self) -> None:
        """Called by whoever runs the job, when its code has ended. Nothing more is said for it."""
        self._ended = True


_current: ContextVar[JobContext | None] = ContextVar("semtask_job", default=None)


_importing_thread: int | None = None


@contextmanager
def importing_app() -> Iterator[None]:
    """A worker imports its app here, in this thread."""
    global _importing_thread  # noqa: PLW0603 - a process imports one app
    _importing_thread = threading.get_ident()
    try:
        yield
    finally:
        _importing_thread = None


def refuse_while_importing() -> None:
    """Raises RuntimeError in a module that a worker imports for its app. Every worker does so: a job that is enqueued
    there would be enqueued again and again, and one that is waited for has nobody to run it.
    """
    if _importing_thread == threading.get_ident():
        raise RuntimeError(
            "the daemon was asked for something while a worker imported the module of the app, which every worker "
            "does; put what the program does below `if __name__ == '__main__':`"
        )


def _nobody() -> JobContext | None:
    return None


_elsewhere: Callable[[], JobContext | None] = _nobody


def answer_elsewhere(answer: Callable[[], JobContext | None]) -> None:
    """Who is asked in a thread to which no job's context was handed on."""
    global _elsewhere  # noqa: PLW0603 - one per process, as the worker is
    _elsewhere = answer


def current_or_none() -> JobContext | None:
    """The job whose code calls this; None outside of a task."""
    job = _current.get()
    return _elsewhere() if job is None else job


def current_job() -> JobContext:
    """The job whose code calls this, also from threads and coroutines that it started.

    Raises RuntimeError outside of a task.
    """
    job = current_or_none()
    if job is None:
        raise RuntimeError(
            "current_job() has an answer only inside a task that semtask runs, in the process of its job"
        )
    return job


def whose(context: contextvars.Context | None = None) -> JobContext | EllipsisType | None:
    """The job that a context is for, the present one by default; None: for the app; `...`: it does not say."""
    return _current.get(...) if context is None else context.get(_current, ...)


@contextmanager
def app_scope() -> Iterator[None]:
    """What an async task makes on the event loop in here belongs to the app: it is not ended with the job.

    For what other jobs of the process use as well, such as a pool of connections with tasks of its own. It lives as
    long as the worker. In here there is no current job, and output goes to the log of the worker.
    """
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def context_of(job: JobContext) -> contextvars.Context:
    """A context of its own for the code of a job: a copy of the caller's, in which `current_job()` is this job."""
    context = contextvars.copy_context()
    context.run(_current.set, job)
    return context
