"""Whatever a job writes - print, logging, warnings, C code, the processes it starts - goes to the job's own log.

Python's streams are replaced by ones that ask whose code writes. Descriptors 1 and 2 are the worker's own log; a sync
job, which has them for itself, gets a way to its own log there as soon as it starts a process, and what came to the
worker's log meanwhile is copied at its end. With async jobs side by side those bytes stay in the worker's log.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

from semtask.protocol.frames import Call
from semtask.tasks.context import JobContext, current_or_none
from semtask.worker.job_log import JobLog, stamped, write_all
from semtask.worker.stream import Stream

_MAX_COPY = 16 * 1024 * 1024
_CHUNK = 64 * 1024
_IOLBF = 1
_HIGH = 200  # above the descriptors that careless code closes


class Capture:
    """`shield` is held while our own code writes inside that of a task: it must not be interrupted half way."""

    def __init__(self, logs_dir: str, stream: Stream | None = None) -> None:
        self._stream = stream
        self._logs_dir = logs_dir
        self._logs: dict[JobContext, JobLog] = {}
        self._own = OwnLog()
        self._redirected = False
        self._is_child = False
        self.shield: AbstractContextManager[object] = nullcontext()
        self.stdout = _Stream(self, "OUT", 1)
        self.stderr = _Stream(self, "ERR", 2)
        os.register_at_fork(after_in_child=self._in_child)

    def install(self) -> None:
        sys.stdout = sys.__stdout__ = self.stdout  # type: ignore[misc, assignment]
        sys.stderr = sys.__stderr__ = self.stderr  # type: ignore[misc, assignment]

    def install_logging(self) -> None:
        """After the import of the app: if that has set up no logging of its own, all from INFO on is logged."""
        logging.captureWarnings(True)
        root = logging.getLogger()
        if not root.handlers:
            root.addHandler(_Handler(self))
            if root.level == logging.WARNING:
                root.setLevel(logging.INFO)

    def restore_streams(self) -> None:
        if sys.stdout is not self.stdout:
            sys.stdout = self.stdout
        if sys.stderr is not self.stderr:
            sys.stderr = self.stderr

    @property
    def own_fd(self) -> int:
        """The worker's own log, wherever 1 and 2 lead."""
        return self._own.fds[1]

    def log_of(self, job: JobContext) -> JobLog:
        log = self._logs.get(job)
        if log is None:
            log = self._logs.setdefault(job, JobLog(_path(self._logs_dir, job)))
        return log

    def print(self, level: str, text: str) -> None:
        job = current_or_none()
        with self.shield:
            if job is None or job.ended:
                write_all(self.own_fd, text.encode("utf-8", "backslashreplace"))
            else:
                self.log_of(job).print(level, text)

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

    def begin(self) -> None:
        """A sync job begins: what comes to the worker's own log from now on is its."""
        self._own.remember()

    def redirect(self) -> None:
        """Lead descriptors 1 and 2 to the log of the sync job that runs, for the processes that it starts."""
        job = current_or_none()
        if self._redirected or job is None or job.ended:
            return
        with self.shield:
            try:
                log = self.log_of(job)
                fd = log.fd()
                if self._stream is not None and (stream := self._stream.lead_to(fd)) is not None:
                    log.lead(stream)
                    fd = stream
                os.dup2(fd, 1)
                os.dup2(fd, 2)
                self._redirected = True
            except OSError as error:  # no room for a log is no reason to refuse the process
                self._own.say(f"the output of what job {job.job_id} starts goes here: {error}")

    def close(self, job: JobContext, *, alone: bool) -> int | None:
        """The job has ended; the size of its log, None if it wrote nothing. `alone`: it was a sync job."""
        if alone:
            self._own.flush()
        if self._redirected:
            self._own.restore()
            self._redirected = False
            if (led := self._logs.get(job)) is not None and led.unlead() and self._stream is not None:
                self._stream.drain()
        try:
            if alone and self._own.has_grown():
                log = self.log_of(job)
                self._own.copy_growth(lambda text: log.print("OUT", text))
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
        for log in self._logs.values():
            log.in_child(1 if self._redirected and log.is_open else None)


def _path(logs_dir: str, job: Call | JobContext) -> str:
    """Where the daemon looks for the log of this claim: as executors.output.LogFiles names it."""
    return f"{logs_dir}/{job.job_id[-2:]}/{job.job_id}.{job.claim_no}.log"


class OwnLog:
    """The worker's own log: what descriptors 1 and 2 were at its start."""

    def __init__(self) -> None:
        import fcntl

        self.flush = _line_buffered_stdout()
        self.fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in (1, 2)]
        files = {(status.st_dev, status.st_ino): fd for fd in self.fds if _is_file(status := os.fstat(fd))}
        self._sizes = dict.fromkeys(files.values(), 0)

    def remember(self) -> None:
        for fd in self._sizes:
            self._sizes[fd] = os.lseek(fd, 0, os.SEEK_END)

    def has_grown(self) -> bool:
        return any(os.lseek(fd, 0, os.SEEK_END) > size for fd, size in self._sizes.items())

    def copy_growth(self, write: Callable[[str], None]) -> None:
        """Hand on what has come since `remember`, at most 16 MiB."""
        for fd, start in self._sizes.items():
            end = os.lseek(fd, 0, os.SEEK_END)
            last = min(end, start + _MAX_COPY)
            with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as file:
                file.seek(start)
                left = last - start
                while left > 0 and (data := file.read(min(_CHUNK, left))):
                    left -= len(data)
                    write(data.decode("utf-8", "backslashreplace"))
            if end > last:
                write(f"\n[... {end - last} bytes more are in the log of the worker ...]\n")

    def restore(self) -> None:
        for number, fd in zip((1, 2), self.fds, strict=True):
            os.dup2(fd, number)

    def say(self, text: str) -> None:
        with suppress(OSError):  # a full disk: there is nowhere left to say it
            write_all(self.fds[1], stamped("WARNING", text))


def _line_buffered_stdout() -> Callable[[], object]:
    """Let the stdout of C write each line when it ends, as in a terminal; a function that writes the rest."""
    import ctypes

    libc = ctypes.CDLL(None)
    stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    libc.setvbuf(stdout, None, _IOLBF, 0)
    return functools.partial(libc.fflush, stdout)


def _is_file(status: os.stat_result) -> bool:
    import stat

    return stat.S_ISREG(status.st_mode)


class _Stream(io.TextIOBase):
    """sys.stdout or sys.stderr of a worker. Nothing is buffered but the rest of a line."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, capture: Capture, level: str, fd: int) -> None:
        super().__init__()
        self._capture = capture
        self._level = level
        self._fd = fd
        self.name = f"<{'stdout' if fd == 1 else 'stderr'}>"
        self.mode = "w"
        self.buffer = _Bytes(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._capture.print(self._level, text)
        return len(text)

    def flush(self) -> None:
        self._capture.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def reconfigure(self, **_options: object) -> None:
        """As of io.TextIOWrapper; there is nothing to set."""

    def close(self) -> None:
        """A task that closes its stream does not close that of the next one."""


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`."""

    def __init__(self, stream: _Stream) -> None:
        super().__init__()
        self._stream = stream

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._stream.write(bytes(data).decode("utf-8", "backslashreplace"))
        return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

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
