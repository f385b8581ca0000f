"""The daemon's own log: `<home>/logs/daemon.log`, rotated, for people (console) or for machines (json)."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from semtask.config.settings import Settings
from semtask.errors import StartupError
from semtask.host.filesystem import make_private
from semtask.model.job import ExecutionMode, Job
from semtask.model.state import Event
from semtask.model.trace_context import trace_id_of
from semtask.telemetry.events import AttemptEnded, Events

_attempts = logging.getLogger("semtask.attempt")

# What a record may say beside its message, given by `extra=`.
CONTEXT = ("job_id", "claim_no", "queue", "task", "state", "end_cause", "duration_ms", "trace_id")
MAX_BYTES = 10 * 1024 * 1024
BACKUPS = 5
_REPEAT_S = 1.0
_MAX_REMEMBERED = 1000

# Names, arguments and messages of others end up in the log: none of it may move a terminal's cursor or fake a line.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_CONTROL |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def configure_logging(settings: Settings, *, foreground: bool) -> None:
    """Send every log record of this process to the daemon's log, in the foreground to stderr as well.

    Raises StartupError if the log cannot be written.
    """
    make_private(settings.logs_dir)
    path = settings.logs_dir / "daemon.log"
    try:
        targets: list[logging.Handler] = [_PrivateRotatingFile(path)]
    except OSError as error:
        raise StartupError(f"cannot write the log {path}: {error.strerror}") from error
    if foreground:
        targets.append(logging.StreamHandler(sys.stderr))
    formatter = JsonFormatter() if settings.log_format == "json" else ConsoleFormatter()
    for target in targets:
        target.setFormatter(formatter)
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.addHandler(RepeatLimit(targets))
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # A full disk or a closed terminal must not break the daemon; the records of that time are lost.
    logging.raiseExceptions = False


def about(job: Job, **more: object) -> dict[str, object]:
    """`extra=` for a line about a claimed job."""
    return {
        "job_id": job.job_id,
        "claim_no": job.claim_no,
        "queue": job.queue,
        "trace_id": trace_id_of(job.trace_context),
        **more,
    }


def log_attempts(events: Events) -> None:
    """One line for every attempt that ended; for tasks that succeeded, of which there may be thousands, with DEBUG."""
    events.attach(AttemptEnded, _log_attempt)


def _log_attempt(ended: AttemptEnded) -> None:
    decision = ended.decision
    task_done = ended.job.execution_mode is ExecutionMode.IN_PROCESS and decision.event is Event.SUCCEED
    level = logging.DEBUG if task_done else logging.INFO
    if not _attempts.isEnabledFor(level):
        return
    _attempts.log(
        level,
        "attempt ended",
        extra=about(
            ended.job,
            task=ended.job.job_type,
            state=decision.state.value,
            end_cause=decision.end_cause.value,
            duration_ms=None if ended.ran_s is None else round(ended.ran_s * 1000, 1),
        ),
    )


class ConsoleFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO    semtask.daemon: message (job_id=...)`; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        context = " ".join(f"{name}={value}" for name, value in _context(record).items())
        message = record.getMessage() + (f" ({context})" if context else "")
        line = f"{_timestamp(record)} {record.levelname:<7} {record.name}: {message.translate(_CONTROL)}"
        return "\n    ".join([line, *(part.translate(_CONTROL) for part in _traceback(self, record).splitlines())])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `ts`, `level`, `event`, `logger`, what `extra=` said, and `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **_context(record),
        }
        if traceback := _traceback(self, record):
            entry["traceback"] = traceback
        return json.dumps(entry, default=str)


class RepeatLimit(logging.Handler):
    """Passes records on, but a warning or error that repeats itself only once a second, with a count of the others.

    The same message is one with the same logger, text (before its arguments are filled in) and job.
    """

    def __init__(self, targets: Sequence[logging.Handler], monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._targets = targets
        self._monotonic = monotonic
        self._seen: dict[tuple[str, str, object], _Repeated] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            left_out = self._left_out(record)
            if left_out is None:
                return
            if left_out:
                record.left_out = left_out
        for target in self._targets:
            target.handle(record)

    def close(self) -> None:
        for target in self._targets:
            target.close()
        super().close()

    def _left_out(self, record: logging.LogRecord) -> int | None:
        """None if this record is to be left out, else how many were since the last one that was not."""
        now = self._monotonic()
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen = {key: seen for key, seen in self._seen.items() if now - seen.at < _REPEAT_S}
        text = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        key = (record.name, text, getattr(record, "job_id", None))
        seen = self._seen.get(key)
        if seen is not None and now - seen.at < _REPEAT_S:
            seen.left_out += 1
            return None
        self._seen[key] = _Repeated(now)
        return seen.left_out if seen else 0


class _Repeated:
    def __init__(self, at: float) -> None:
        self.at = at
        self.left_out = 0


class _PrivateRotatingFile(RotatingFileHandler):
    stream: TextIOWrapper

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        """As the base class, which formats each record twice: once to know its length."""
        try:
            line = self.format(record) + self.terminator
            if not self._is_in_place():  # somebody has deleted it, or its folder
                self.stream.close()
                self.stream = self._open()
            if self.stream.tell() + len(line) > self.maxBytes:  # opened by the constructor, hence never None
                self.doRollover()
            self.stream.write(line)
            self.flush()
        except Exception:  # noqa: BLE001 - a log that cannot be written must not break what is logged
            self.handleError(record)

    def _is_in_place(self) -> bool:
        try:
            found = os.stat(self.baseFilename)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._opened

    def _open(self) -> TextIOWrapper:
        with suppress(FileExistsError):
            os.mkdir(os.path.dirname(self.baseFilename), 0o700)  # alone: a home that was deleted is not made again
        fd = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        status = os.fstat(fd)
        self._opened = (status.st_dev, status.st_ino)
        return open(fd, "a", encoding=self.encoding, errors=self.errors)


def _timestamp(record: logging.LogRecord) -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _context(record: logging.LogRecord) -> dict[str, object]:
    return {name: record.__dict__[name] for name in (*CONTEXT, "left_out") if record.__dict__.get(name) is not None}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[1] else ""
