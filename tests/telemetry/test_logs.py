"""The daemon's own log: one line per record, private, rotated, and never a reason for the daemon to fail."""

from __future__ import annotations

import errno
import io
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from semtask.config.settings import Settings
from semtask.errors import StartupError
from semtask.model.job import ExecutionMode, Job, OnInterrupt
from semtask.model.retry import Decision
from semtask.model.state import EndCause, Event, State
from semtask.telemetry.events import AttemptEnded, Events
from semtask.telemetry.logs import ConsoleFormatter, RepeatLimit, configure_logging, log_attempts

log = logging.getLogger("semtask.test")


@pytest.fixture(autouse=True)
def _own_root_logger() -> Iterator[None]:
    """The root logger of pytest comes back afterwards."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    logging.captureWarnings(False)
    root.handlers, logging.raiseExceptions = handlers, raising
    root.setLevel(level)


def settings(tmp_path: Path, log_format: str = "json") -> Settings:
    return Settings(home=tmp_path, log_format=log_format)


def entries(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "logs" / "daemon.log").read_text().splitlines()]


def test_json_is_one_object_a_line_with_what_the_record_says(tmp_path: Path) -> None:
    configure_logging(settings(tmp_path), foreground=False)
    context = {"job_id": "j", "claim_no": 2, "queue": "q", "trace_id": "t", "other": "is not written"}
    log.info("ready: pid %d", 7, extra=context)
    log.debug("not written")
    entry = entries(tmp_path)[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("ts"))
    assert entry == {
        "level": "info",
        "event": "ready: pid 7",
        "logger": "semtask.test",
        "job_id": "j",
        "claim_no": 2,
        "queue": "q",
        "trace_id": "t",
    }


def test_an_attempt_that_ended_is_one_line_that_names_its_job_and_trace(tmp_path: Path) -> None:
    configure_logging(settings(tmp_path), foreground=False)
    events = Events()
    log_attempts(events)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    job = Job(
        seq=1,
        job_id="j",
        queue="q",
        job_type="build",
        execution_mode=ExecutionMode.SUBPROCESS,
        state=State.RUNNING,
        payload="{}",
        created_at=1,
        on_interrupt=OnInterrupt.FAIL,
        content_hash=b"",
        claim_no=3,
        trace_context=f"00-{trace}-00f067aa0ba902b7-01",
    )
    decision = Decision(event=Event.RETRY, end_cause=EndCause.EXIT_CODE, delay_ms=1000)
    events.emit(AttemptEnded(job, decision, 0.1236))
    events.emit(AttemptEnded(job, decision, None))
    task = msgspec.structs.replace(job, execution_mode=ExecutionMode.IN_PROCESS, job_type="task")
    done = Decision(event=Event.SUCCEED, end_cause=EndCause.SUCCESS)
    events.emit(AttemptEnded(task, done, 0.1))
    events.emit(AttemptEnded(task, decision, 0.1))
    events.emit(AttemptEnded(job, done, 0.1))
    first, second, *others = entries(tmp_path)
    expected = {
        "level": "info",
        "event": "attempt ended",
        "logger": "semtask.attempt",
        "job_id": "j",
        "claim_no": 3,
        "queue": "q",
        "task": "build",
        "state": "SCHEDULED",
        "end_cause": "exit_code",
        "trace_id": trace,
    }
    assert first == {"ts": first["ts"], **expected, "duration_ms": 123.6}
    assert second == {"ts": second["ts"], **expected}
    # A task that succeeded has no line: there may be thousands of them in a second.
    assert [(entry["task"], entry["end_cause"]) for entry in others] == [("task", "exit_code"), ("build", "success")]


def test_json_keeps_a_traceback_in_its_line(tmp_path: Path) -> None:
    configure_logging(settings(tmp_path), foreground=False)
    try:
        raise ValueError("bad\nnews")
    except ValueError:
        log.exception("it failed")
    (entry,) = entries(tmp_path)
    assert entry["event"] == "it failed"
    assert entry["traceback"].endswith("ValueError: bad\nnews")


def test_console_is_a_line_for_people(tmp_path: Path) -> None:
    configure_logging(settings(tmp_path, "console"), foreground=False)
    log.warning("late", extra={"job_id": "j", "claim_no": 0})
    text = (tmp_path / "logs" / "daemon.log").read_text()
    assert re.fullmatch(r"\S+Z WARNING semtask\.test: late \(job_id=j claim_no=0\)\n", text)


def test_console_lets_no_message_fake_a_line_or_move_the_cursor(tmp_path: Path) -> None:
    configure_logging(settings(tmp_path, "console"), foreground=False)
    log.info("a\nb\r\x1b[2J\x9b\x7f\t\u2028\udcff 世界", extra={"queue": "x\ny"})
    try:
        raise ValueError("\x1b]0;title\x07\n2026-01-01T00:00:00.000Z INFO    fake: line")
    except ValueError:
        log.exception("failed")
    lines = (tmp_path / "logs" / "daemon.log").read_text().split("\n")
    assert lines[0].endswith(r": a\nb\r\x1b[2J\x9b\x7f\t\u2028\udcff 世界 (queue=x\ny)")
    assert lines[1].endswith("ERROR   semtask.test: failed")
    assert all(line.startswith("    ") for line in lines[2:-1])
    assert lines[-2] == "    2026-01-01T00:00:00.000Z INFO    fake: line"
    assert not set("".join(lines)) & {"\x1b", "\x07", "\x9b", "\x7f", "\r"}


def test_the_log_and_its_folder_are_private_and_a_planted_link_is_refused(tmp_path: Path) -> None:
    configure_logging(settings(tmp_path), foreground=False)
    folder = tmp_path / "logs"
    assert (folder.stat().st_mode & 0o777, (folder / "daemon.log").stat().st_mode & 0o777) == (0o700, 0o600)
    (folder / "daemon.log").unlink()
    (folder / "daemon.log").symlink_to(tmp_path / "victim")
    with pytest.raises(StartupError, match=r"cannot write the log .*daemon\.log: Too many levels of symbolic links"):
        configure_logging(settings(tmp_path), foreground=False)
    assert not (tmp_path / "victim").exists()


def test_the_log_is_rotated_at_10_mb_five_old_ones_are_kept_and_all_are_private(tmp_path: Path) -> None:
    configure_logging(settings(tmp_path), foreground=False)
    mib = 1024 * 1024
    text = "x" * mib
    for number in range(9 * 7):  # nine lines of a little more than 1 MiB fit into one file
        log.info("message %d %s", number, text)
    parts = sorted((tmp_path / "logs").iterdir())
    assert [part.name for part in parts] == ["daemon.log", *(f"daemon.log.{number}" for number in range(1, 6))]
    assert all(9 * mib < part.stat().st_size <= 10 * mib and part.stat().st_mode & 0o777 == 0o600 for part in parts)


def test_in_the_foreground_the_log_goes_to_stderr_too(tmp_path: Path) -> None:
    code = (
        "import logging, pathlib, sys\n"
        "from semtask.config.settings import Settings\n"
        "from semtask.telemetry.logs import configure_logging\n"
        "configure_logging(Settings(home=pathlib.Path(sys.argv[1])), foreground=sys.argv[2] == 'yes')\n"
        "logging.getLogger('x').info('hello')\n"
    )
    for foreground in ("yes", "no"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), foreground], capture_output=True, text=True, check=True
        )
        assert done.stdout == ""
        assert done.stderr.endswith("INFO    x: hello\n") == (foreground == "yes")
    assert (tmp_path / "logs" / "daemon.log").read_text().count("x: hello") == 2


def test_warnings_of_python_are_logged(tmp_path: Path) -> None:
    configure_logging(settings(tmp_path), foreground=False)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert "DeprecationWarning: old" in entries(tmp_path)[0]["event"]


# --- repeats ---------------------------------------------------------------------------------------------------------


class Collected(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(ConsoleFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record).partition(": ")[2])


class Storm:
    """A RepeatLimit with two targets and a clock to turn."""

    def __init__(self) -> None:
        self.now = 100.0
        self.first, self.second = Collected(), Collected()
        self.limit = RepeatLimit([self.first, self.second], lambda: self.now)
        logging.getLogger().addHandler(self.limit)
        logging.getLogger().setLevel(logging.INFO)


def test_a_repeated_warning_is_written_once_a_second_with_a_count_of_the_others() -> None:
    storm = Storm()
    for number in range(250):  # 2.5 s
        log.error("accept failed: %d", number)
        storm.now += 0.01
    assert storm.first.lines == [
        "accept failed: 0",
        "accept failed: 100 (left_out=99)",
        "accept failed: 200 (left_out=99)",
    ]
    assert storm.second.lines == storm.first.lines


def test_other_messages_jobs_and_loggers_are_not_left_out() -> None:
    storm = Storm()
    for _ in range(2):
        log.warning("one")
        log.warning("two")
        log.warning("one", extra={"job_id": "j"})
        logging.getLogger("semtask.other").warning("one")
        log.info("not a warning")
    assert storm.first.lines == ["one", "two", "one (job_id=j)", "one", "not a warning", "not a warning"]


def test_the_memory_of_repeats_is_bounded() -> None:
    storm = Storm()
    for number in range(5000):
        log.warning(f"text {number}")  # noqa: G004 - a text that is never the same
        storm.now += 0.01
    assert len(storm.limit._seen) <= 1001 + 1
    assert len(storm.first.lines) == 5000


# --- a broken handler ------------------------------------------------------------------------------------------------


def test_a_full_disk_or_a_closed_terminal_breaks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    configure_logging(settings(tmp_path), foreground=True)
    closed.close()
    log.info("to the file, if not to the terminal")
    limit = logging.getLogger().handlers[0]
    assert isinstance(limit, RepeatLimit)
    target = limit._targets[0]
    assert isinstance(target, logging.StreamHandler)
    target.stream.close()
    target.stream = FullDisk()
    log.info("no room")
    log.info("%d", "no number")
    log.warning(Unprintable())
    target.stream = io.StringIO()
    log.info("room again")
    assert "room again" in target.stream.getvalue()
    assert [entry["event"] for entry in entries(tmp_path)] == ["to the file, if not to the terminal"]
    assert capsys.readouterr().err == ""


class FullDisk(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("cannot say")
