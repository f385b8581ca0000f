"""`logs --daemon`: the daemon's own log, whether it runs or not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.cli.rig import LIMIT_S, Shell


def record(minute: int, event: str, *, as_json: bool = False, day: int = 1) -> str:
    ts = f"2026-01-{day:02d}T12:{minute:02d}:00.000Z"
    if as_json:
        return json.dumps({"ts": ts, "level": "info", "event": event, "logger": "semtask.x"}) + "\n"
    return f"{ts} INFO    semtask.x: {event}\n"


@pytest.fixture
def log(shell: Shell) -> Path:
    """Three files, as rotation leaves them; no daemon."""
    folder = shell.home / "logs"
    folder.mkdir(parents=True)
    (folder / "daemon.log.2").write_text(record(0, "oldest"))
    (folder / "daemon.log.1").write_text(record(1, "older") + "    Traceback: of the older\n")
    (folder / "daemon.log").write_text(record(2, "newer", as_json=True) + record(3, "newest"))
    return folder / "daemon.log"


def events(out: str) -> list[str]:
    return [json.loads(line)["event"] for line in out.splitlines()]


def test_all_files_in_order_without_a_daemon(shell: Shell, log: Path) -> None:
    said = shell("logs", "--daemon", "--json")
    assert events(said.out) == ["oldest", "older", "    Traceback: of the older", "newer", "newest"]
    assert said.json_lines[0] == {
        "schema": "daemon_log.v1",
        "ts": "2026-01-01T12:00:00.000Z",
        "level": "info",
        "logger": "semtask.x",
        "event": "oldest",
    }
    assert shell("logs", "--daemon").out == record(0, "oldest") + record(1, "older") + (
        "    Traceback: of the older\n" + record(2, "newer", as_json=True) + record(3, "newest")
    )
    assert shell("status").code == 3


def test_the_last_lines_and_the_time(shell: Shell, log: Path) -> None:
    assert events(shell("logs", "--daemon", "-n", "2", "--json").out) == ["newer", "newest"]
    assert shell("logs", "--daemon", "-n", "0").out == ""
    since = shell("logs", "--daemon", "--since", "2026-01-01T12:01:00Z", "--json")
    assert events(since.out) == ["older", "    Traceback: of the older", "newer", "newest"]
    assert events(shell("logs", "--daemon", "--since", "2026-01-01T12:01:01Z", "--json").out) == ["newer", "newest"]
    assert shell("logs", "--daemon", "--since", "1ms").out == ""


def test_nothing_in_it_steers_the_terminal(shell: Shell, log: Path) -> None:
    log.write_bytes(b'\x1b[2J\xff evil\n{"ts": "2026-01-01T12:00:00.000Z", half a line')
    code, text = shell.on_terminal("logs", "--daemon", "-n", "2", "--color", "never")
    assert code == 0
    assert "\x1b" not in text
    assert "evil" in text
    assert events(shell("logs", "--daemon", "-n", "1", "--json").out)[0].endswith("half a line")


def test_follow_goes_on_over_a_rotation(shell: Shell, log: Path) -> None:
    with shell.start("logs", "--daemon", "-f", "-n", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b"newest\n")
        with log.open("a") as file:
            file.write("half ")
            file.flush()
            time.sleep(0.3)  # it has seen the half line by now; it must not print it in two
            file.write("line\n")
        os.replace(log, log.with_name("daemon.log.1"))
        log.write_text(record(4, "after the rotation"))
        assert process.stdout.readline() == b"half line\n"
        assert process.stdout.readline().endswith(b"after the rotation\n")
        process.send_signal(2)
        assert process.wait(LIMIT_S) == 130


def test_of_a_running_daemon(shell: Shell) -> None:
    shell("up")
    assert "semtask.daemon: ready" in shell("logs", "--daemon", "--since", "1m").out
    with shell.start("logs", "--daemon", "-f", "-n", "0", "--json") as process:
        assert process.stdout is not None
        time.sleep(0.5)
        shell("down", "--now")
        assert "stopping" in json.loads(process.stdout.readline())["event"]


def test_no_log_yet(shell: Shell) -> None:
    said = shell("logs", "--daemon")
    assert (said.code, said.out) == (1, "")
    assert "`semtask up`" in said.err
    assert not shell.home.exists()
