"""Whatever a job writes - print, logging, warnings, C code, the processes it starts - goes to the job's own log.

Python's streams are replaced by ones that ask whose code writes. Descriptors 1 and 2 are a pipe to the worker's own
log; a sync job, which has them for itself, gets a pipe to its own log there as soon as it starts a process, and what
came to the worker's log meanwhile is copied at its end. With async jobs side by side those bytes stay in the worker's
log.

A sync job may lead 1 and 2 elsewhere (`os.dup2`, and what captures output by it): its streams and the processes that it
starts follow, as in any program, until its end.
"""

from __future__ import annotations

import fcntl
import functools
import io
import logging
import os
import sys
import termios
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from semtask.protocol.frames import Call
from semtask.tasks.context import JobContext, current_or_none
from semtask.worker.descriptors import keep_aside
from semtask.worker.job_log import JobLog, stamped, write_all
from semtask.worker.stream import Stream

_MAX_COPY = 16 * 1024 * 1024
_CHUNK = 64 * 1024
_IOLBF = 1
_NOTHING = bytes(4)  # FIONREAD of an empty pipe
_AS_MADE: dict[str, Any] = {
    "encoding": "utf-8",
    "errors": "backslashreplace",
    "line_buffering": True,
    "write_through": True,
}


class Capture:
    """`shield` is held while our own code writes inside that of a task: it must not be interrupted half way."""

    def __init__(self, logs_dir: str, log_path: str, stream: Stream | None = None) -> None:
        self._stream = stream
        self._logs_dir = logs_dir
        self._logs: dict[JobContext, JobLog] = {}
        self._own = OwnLog(log_path, stream)
        self._alone = False  # a sync job runs, or has run: 1 and 2 are its
        self._is_child = False
        self.shield: AbstractContextManager[object] = nullcontext()
        self.stdout = _Stream(self, "OUT", 1)
        self.stderr = _Stream(self, "ERR", 2)
        os.register_at_fork(after_in_child=self._in_child)

    def install(self) -> None:
        sys.stdout = sys.__stdout__ = self.stdout  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.stderr  # type: ignore[misc]

    def install_logging(self) -> None:
        """After the import of the app: if that has set up no logging of its own, all from INFO on is logged."""
        logging.captureWarnings(True)
        root = logging.getLogger()
        if not root.handlers:
            root.addHandler(_Handler(self))
            if root.level == logging.WARNING:
                root.setLevel(logging.INFO)

    def restore_streams(self) -> None:
        """Streams and descriptors as they were at the start: what the code before has led elsewhere ends here."""
        self._own.flush()
        self._own.restore()
        if sys.stdout is not self.stdout:
            sys.stdout = self.stdout
        if sys.stderr is not self.stderr:
            sys.stderr = self.stderr
        self.stdout.restore()
        self.stderr.restore()

    @property
    def own_fd(self) -> int:
        """The worker's own log, wherever 1 and 2 lead."""
        return self._own.fds[2]

    def log_of(self, job: JobContext) -> JobLog:
        log = self._logs.get(job)
        if log is None:
            log = self._logs.setdefault(job, JobLog(_path(self._logs_dir, job)))
        return log

    def print(self, level: str, fd: int, data: str | bytes) -> None:
        """What was written to the stream of descriptor `fd`."""
        job = current_or_none()
        with self.shield:
            if job is not None and not job.ended and not self._leads_elsewhere(fd, job):
                self.log_of(job).print(level, data)
                return
            raw = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
            write_all(self.own_fd if job is None or job.ended else fd, raw)

    def write(self, level: str, text: str) -> None:
        job = current_or_none()
        with self.shield:
            if job is None or job.ended:
                write_all(self.own_fd, stamped(level, text))
            else:
                self.log_of(job).write(level, text)

    def flush(self) -> None:
        """In a forked child, which ends in its own way, unfinished lines are written when it flushes its streams."""
        if self._is_child:
            for log in self._logs.values():
                log.flush()

    # --- the descriptors of a sync job ------------------------------------------------------------------------------

    def begin(self) -> int:
        """A sync job begins: what comes to the worker's own log from now on, from this position, is its."""
        self._alone = True
        return self._own.remember()

    def redirect(self) -> None:
        """Lead descriptors 1 and 2 to the log of the sync job that runs, for the processes that it starts.

        Not those that the job itself has led elsewhere.
        """
        job = current_or_none()
        if job is None or job.ended or not (numbers := [fd for fd in (1, 2) if self._own.is_at(fd)]):
            return
        with self.shield:
            try:
                log = self.log_of(job)
                if self._stream is not None and not log.is_led and (way := self._stream.lead_to(log.fd())) is not None:
                    log.lead(way)
                for number in numbers:
                    os.dup2(log.way(), number)
            except OSError as error:  # no room for a log is no reason to refuse the process
                self._own.say(f"the output of what job {job.job_id} starts goes here: {error}")

    def _leads_elsewhere(self, fd: int, job: JobContext) -> bool:
        """Whether a job has led 1 or 2 to a file, pipe or socket of its own."""
        if not self._alone:
            return False
        try:
            status = os.fstat(fd)
        except OSError:  # closed
            return False
        return not self._own.is_it(status, fd) and not self._is_log(status, job)

    def _is_log(self, status: os.stat_result, job: JobContext) -> bool:
        log = self._logs.get(job)
        return log is not None and log.is_it(status)

    def close(self, job: JobContext, *, alone: bool) -> int | None:
        """The job has ended, and the streams are restored; the size of its log, None if it wrote nothing.

        `alone`: it was a sync job.
        """
        if (led := self._logs.get(job)) is not None and led.unlead() and self._stream is not None:
            self._stream.drain()
        try:
            if alone and self._own.has_grown():
                log = self.log_of(job)
                log.flush()
                self._own.copy_growth(functools.partial(log.print, "OUT"))
            elif (known := self._logs.get(job)) is None:
                return None
            else:
                log = known
            log.flush()
        except OSError as error:
            self._own.say(f"the end of the log of job {job.job_id} is lost: {error}")
        return self._logs.pop(job).close()

    def _in_child(self) -> None:
        """Descriptors above 2 are often closed by a child; but 1 is where the output of this process goes now."""
        self._is_child = True
        status = _status(1)
        for log in self._logs.values():
            log.in_child(1 if status is not None and log.is_it(status) else None)


def _path(logs_dir: str, job: Call | JobContext) -> str:
    """Where the daemon looks for the log of this claim: as executors.output.LogFiles names it."""
    return f"{logs_dir}/{job.job_id[-2:]}/{job.job_id}.{job.claim_no}.log"


class OwnLog:
    """The worker's own log, a file, and the way there: what descriptors 1 and 2 were at its start.

    Keeps descriptor 0, too. `stream` is asked to empty the pipe before the file is looked at.
    """

    def __init__(self, path: str, stream: Stream | None) -> None:
        self.flush = _line_buffered_stdout()
        self.fds = [keep_aside(fd) for fd in (0, 1, 2)]
        self._files = [_identity(os.fstat(fd)) for fd in self.fds]
        log = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._log = keep_aside(log)
        os.close(log)
        self._stream = stream
        self._size = 0

    def is_it(self, status: os.stat_result, fd: int) -> bool:
        """Whether this is the status of what descriptor `fd` was at the start."""
        return _identity(status) == self._files[fd]

    def is_at(self, fd: int) -> bool:
        """Whether descriptor `fd` is what it was at the start."""
        status = _status(fd)
        return status is not None and self.is_it(status, fd)

    def remember(self) -> int:
        """The size of the log now."""
        self._size = self._size_now()
        return self._size

    def has_grown(self) -> bool:
        return self._size_now() != self._size

    def _size_now(self) -> int:
        """With all that was written until now."""
        # To look into the pipe costs a thousandth of asking the shim. A splice empties it when the file has all.
        if self._stream is not None and fcntl.ioctl(self.fds[1], termios.FIONREAD, _NOTHING) != _NOTHING:
            self._stream.drain()
        return os.lseek(self._log, 0, os.SEEK_END)

    def copy_growth(self, write: Callable[[str | bytes], None]) -> None:
        """Hand on what has come since `remember`, at most 16 MiB."""
        position, end = self._size, os.lseek(self._log, 0, os.SEEK_END)
        last = min(end, position + _MAX_COPY)
        while position < last and (data := os.pread(self._log, min(_CHUNK, last - position), position)):
            position += len(data)
            write(data)
        if end > last:
            write(f"\n[... {end - last} bytes more are in the log of the worker ...]\n")

    def restore(self) -> None:
        for number, fd in enumerate(self.fds):
            if not self.is_at(number):
                os.dup2(fd, number)
        if not os.get_blocking(self.fds[1]):  # C code does not wait then, and loses what the pipe cannot take
            os.set_blocking(self.fds[1], True)

    def say(self, text: str) -> None:
        with suppress(OSError):  # a full disk: there is nowhere left to say it
            write_all(self.fds[2], stamped("WARNING", text))


def _line_buffered_stdout() -> Callable[[], object]:
    """Let the stdout of C write each line when it ends, as in a terminal; a function that writes the rest."""
    import ctypes

    libc = ctypes.CDLL(None)
    stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    libc.setvbuf(stdout, None, _IOLBF, 0)
    return functools.partial(libc.fflush, stdout)


def _status(fd: int) -> os.stat_result | None:
    """None of a closed one."""
    try:
        return os.fstat(fd)
    except OSError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_rdev


class _Stream(io.TextIOWrapper):
    """sys.stdout or sys.stderr of a worker. Nothing is buffered but the rest of a line.

    A TextIOWrapper, as libraries look for one and for what it has. All that is written goes past its inner parts.
    """

    mode = "w"

    def __init__(self, capture: Capture, level: str, fd: int) -> None:
        self._capture = capture
        self._level = level
        self._fd = fd
        self._bytes = _Bytes(capture, level, fd)
        super().__init__(self._bytes, **_AS_MADE)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._capture.print(self._level, self._fd, text)
        return len(text)

    def flush(self) -> None:
        self._capture.flush()

    def detach(self) -> _Bytes:  # type: ignore[override]
        """The binary stream, as of any TextIOWrapper; this one goes on for the next job."""
        return self._bytes

    def close(self) -> None:
        """A task that closes its stream does not close that of the next one."""

    def restore(self) -> None:
        """Take back what a task has set by `reconfigure`."""
        if any(getattr(self, name) != value for name, value in _AS_MADE.items()):
            self.reconfigure(**_AS_MADE)


class _Bytes(io.BufferedIOBase):
    """`sys.stdout.buffer`."""

    mode = "wb"

    def __init__(self, capture: Capture, level: str, fd: int) -> None:
        super().__init__()
        self._capture = capture
        self._level = level
        self._fd = fd
        self.name = f"<{'stdout' if fd == 1 else 'stderr'}>"

    @property
    def raw(self) -> _Bytes:
        return self

    def write(self, data: bytes) -> int:  # type: ignore[override]
        content = bytes(memoryview(data))
        self._capture.print(self._level, self._fd, content)
        return len(content)

    def flush(self) -> None:
        self._capture.flush()

    def detach(self) -> _Bytes:  # type: ignore[override]
        return self

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def close(self) -> None:
        """As that of the stream."""


class _Handler(logging.Handler):
    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self._capture = capture

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._capture.write(record.levelname, self.format(record))
        except Exception:  # noqa: BLE001 - as every handler: logging must not end the task
            self.handleError(record)
