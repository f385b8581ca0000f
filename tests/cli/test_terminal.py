"""What only happens on a terminal: tables, colours, Ctrl-C from the keyboard."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.rig import COMMAND, Shell, Terminal, alive, eventually

COLOR = "\x1b[3"


def test_a_table_for_people(served: Shell) -> None:
    job_id = served("run", "-d", "-t", "table", "sh", "-c", "exit 3", "x" * 300).id
    served("wait", job_id)
    code, text = served.on_terminal("ls", "-t", "table")
    header, row = text.splitlines()
    assert code == 0
    assert header.split() == ["ID", "STATE", "QUEUE", "WHEN", "TOOK", "WHY", "COMMAND"]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", row)
    assert plain.startswith(f"{job_id[-8:]}  FAILED")
    assert "exit 3" in plain
    assert re.search(r"\d+\.\d s ago", plain)
    assert len(plain) <= 100
    assert plain.endswith("…")
    assert "\x1b[31mFAILED\x1b[0m" in row


@pytest.mark.parametrize(
    ("argv", "env", "colored"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"TERM": "dumb"}, False),
        (["--color", "never"], {}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        (["--json"], {}, False),
        ([], {"SEMANTICA_OUTPUT": "quiet"}, False),
    ],
)
def test_colour(served: Shell, argv: list[str], env: dict[str, str], colored: bool) -> None:
    served("run", "-d", "-t", "colour", "true")
    code, text = served.on_terminal("ls", "-t", "colour", *argv, env=env)
    assert code == 0
    assert (COLOR in text) is colored


@pytest.mark.parametrize(
    ("env", "colored"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"CLICOLOR_FORCE": "1"}, True)]
)
def test_colour_without_a_terminal(served: Shell, env: dict[str, str], colored: bool) -> None:
    served("run", "-d", "true")
    assert (COLOR in served("show", "last", env=env).out) is colored


def test_no_arguments_show_the_status(served: Shell) -> None:
    code, text = served.on_terminal()
    assert code == 0
    assert text.startswith("daemon: running (pid ")
    assert "jobs: " in text


def test_no_arguments_and_no_daemon(shell: Shell) -> None:
    code, text = shell.on_terminal()
    assert code == 3
    assert "`semtask up`" in text
    assert not shell.home.exists()


def test_both_streams_on_one_terminal_keep_their_order(served: Shell) -> None:
    script = "for i in 1 2 3; do echo o$i; echo e$i >&2; done"
    code, text = served.on_terminal("run", "-q", "sh", "-c", script)
    assert (code, text.split()) == (0, ["o1", "e1", "o2", "e2", "o3", "e3"])


def test_ctrl_c_reaches_the_job_and_not_the_daemon(shell: Shell) -> None:
    """The terminal signals the whole foreground group; a daemon that was started from there must not be in it."""
    with Terminal([*COMMAND, "run", "sh", "-c", "echo ready; exec sleep 60"], shell.env) as terminal:
        terminal.read_until("ready")
        pid = shell.daemon_pid()
        terminal.press(b"\x03")
        code, text = terminal.finish()
    assert code == 130
    assert "was cancelled" in text
    assert alive(pid)


_QUESTION = "continue? [s/d/c] "


@pytest.mark.parametrize(
    ("keys", "code", "state", "said"),
    [
        ([b"s\n"], 130, "CANCELLED", "was cancelled"),
        ([b"d\n"], 130, "RUNNING", "detached from"),
        ([b"what?\n", b"detach\n"], 130, "RUNNING", "detached from"),
        ([b"\x03"], 130, "CANCELLED", "was cancelled"),
        ([b"c\n"], 0, "DONE", "succeeded"),
        ([b"\n"], 0, "DONE", "succeeded"),
        ([b"\x04"], 0, "DONE", "succeeded"),
    ],
    ids=["stop", "detach", "asked again", "Ctrl-C once more", "continue", "empty", "Ctrl-D"],
)
def test_ctrl_c_asks(served: Shell, tmp_path: Path, keys: list[bytes], code: int, state: str, said: str) -> None:
    script = f"echo ready; while ! test -e {tmp_path}/go; do sleep 0.05; done"
    with Terminal([*COMMAND, "run", "--ctrl-c=ask", "sh", "-c", script], served.env) as terminal:
        terminal.read_until("ready")
        job_id = served("ls", "-q", "--limit", "1").id
        terminal.press(b"\x03")
        for times, key in enumerate(keys, 1):
            terminal.read_until(_QUESTION, times=times)
            assert served.job(job_id)["stop_reason"] is None
            terminal.press(key)
        if state == "DONE":
            (tmp_path / "go").touch()
        ended, text = terminal.finish()
    assert ended == code
    assert said in text.replace("\n", " ")
    assert served.job(job_id)["state"] == state
    served("cancel", job_id)


def test_watching_a_list(served: Shell) -> None:
    served("pause", "watched")
    job_id = served("run", "-d", "-Q", "watched", "true").id
    with Terminal([*COMMAND, "ls", "--watch", "-Q", "watched"], served.env) as terminal:
        terminal.read_until("\x1b[?1049h")  # a screen of its own: what was on the terminal comes back
        terminal.read_until(job_id[-8:])
        terminal.read_until("QUEUED")
        served("resume", "watched")
        terminal.read_until("DONE")
        for _ in range(40):  # more than the terminal has rows
            last = served("run", "-d", "-Q", "watched", "true").id
        terminal.read_until(last[-8:])
        terminal.press(b"\x03")
        code, text = terminal.finish()
    assert code == 130
    assert text.endswith("\x1b[?1049l")
    assert all(screen.count("\n") < 30 for screen in text.split("\x1b[H\x1b[J"))


def test_ctrl_c_on_a_viewer_only_ends_the_viewer(served: Shell) -> None:
    job_id = served("run", "-d", "sh", "-c", "echo ready; exec sleep 60").id
    for argv in (["logs", "-f", job_id], ["wait", job_id], ["result", "-w", job_id]):
        with Terminal([*COMMAND, *argv], served.env) as terminal:
            eventually(terminal.connected, what="it talks to the daemon")
            terminal.press(b"\x03")
            code, text = terminal.finish()
        assert code == 130
        assert "Traceback" not in text
        assert served.job(job_id)["state"] == "RUNNING"
    served("cancel", job_id)


def test_the_job_goes_on_when_the_terminal_dies(served: Shell) -> None:
    with Terminal([*COMMAND, "run", "sh", "-c", "echo ready; sleep 0.5; echo finished"], served.env) as terminal:
        terminal.read_until("ready")
    assert served("logs", "-f", "last").out == "ready\nfinished\n"
    assert served.job(served("ls", "-q", "--limit", "1").id)["state"] == "DONE"


def test_names_cannot_steer_the_terminal(served: Shell, tmp_path: Path) -> None:
    evil = "a\x1b[2J\r\x9b\x07\u202eb"
    for option in ("--name", "--tag"):
        code, text = served.on_terminal("run", "-d", option, evil, "true")
        assert code == 2
        assert "no control characters" in text
        assert not set(evil[1:-1]) - set("[2J\r") & set(text)
    # What is no name, or is one that others have given, is shown as escapes.
    program = tmp_path / f"{evil}.sh"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    served("run", "-d", "-t", "evil", "--subject", evil, str(program), evil)
    served("wait", "last")
    listed = (["ls", "-t", "evil"], ["show", "last"], ["result", "last"], ["wait", "last"], ["logs", "last"])
    for argv in (*listed, ["run", str(program)], ["ls", "--subject", evil], ["cancel", f"@{evil}"], ["tasks", evil]):
        _, text = served.on_terminal(*argv, "--color", "never")
        assert not set(evil[1:-1]) - set("[2J\r") & set(text), (argv, text)
