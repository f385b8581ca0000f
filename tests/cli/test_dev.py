"""`semtask dev`: what it prints while code changes and jobs run, and what it leaves behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cli.rig import COMMAND, LIMIT_S, Shell, Terminal, alive, eventually, processes_of

CODE = """
import time
from semtask import Retry, Semantica, current_job

app = Semantica()

@app.task(name="count")
def count(to: int) -> int:
    for number in range(to):
        print("number", number)
    return to

@app.task(name="flaky", retry=Retry(2, base=3.0))
def flaky() -> None:
    if current_job().attempt == 1:
        raise ValueError("not yet")

@app.task(name="sleep")
def sleep() -> None:
    print("sleeping", flush=True)
    time.sleep(60)
"""
MORE = '\n@app.task(name="more")\ndef more() -> None: ...\n'


def write(shell: Shell, code: str) -> Path:
    project = shell.home.parent / "project"
    project.mkdir(exist_ok=True)
    (project / "shop.py").write_text(code)
    return project


class Dev:
    """A running `semtask dev --json`, event by event."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._data = b""
        self.seen: list[Any] = []

    def until(self, **wanted: Any) -> dict[str, Any]:
        """The next event with these fields; those before it are skipped."""
        end = time.monotonic() + LIMIT_S
        while True:
            line, newline, rest = self._data.partition(b"\n")
            if newline:
                self._data = rest
                event = json.loads(line)
                self.seen.append(event)
                if {**event, **wanted} == event:
                    return dict(event)
                continue
            assert self.process.stdout is not None
            assert select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0], self.seen
            more = os.read(self.process.stdout.fileno(), 65536)
            assert more, (self.seen, self.process.stderr and self.process.stderr.read())
            self._data += more

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.read()
        said = self.process.stderr.read().decode()
        return self.process.wait(LIMIT_S), said


@contextmanager
def developing(shell: Shell, code: str = CODE, *argv: str) -> Iterator[Dev]:
    project = write(shell, code)
    with shell.start("dev", "shop", "--json", *argv, cwd=project) as process:
        yield Dev(process)


def tasks_of(shell: Shell) -> list[str]:
    return shell("tasks", "-q").out.split()


def test_jobs_are_shown_from_their_beginning_to_their_end(shell: Shell) -> None:
    with developing(shell) as dev:
        assert dev.until(event="app")["app"]["tasks"] == 3
        done = shell("enqueue", "count", "-a", "to=2").id
        for number in range(2):
            line = dev.until(event="line", job_id=done)
            assert line["text"].endswith(f"number {number}")
        ended = dev.until(event="ended")["job"]
        assert (ended["job_id"], ended["state"]) == (done, "DONE")
        flaky = shell("enqueue", "flaky").id
        first = dev.until(event="attempt_ended")
        assert (first["job"]["job_id"], first["attempt"]) == (flaky, first["job"]["claim_no"])
        assert "not yet" in first["job"]["error"]
        assert dev.until(event="ended")["job"]["state"] == "DONE"
        running = shell("enqueue", "sleep").id
        assert dev.until(event="begun")["job"]["job_id"] == running
        assert dev.until(event="line")["text"].endswith("sleeping")
        assert shell("cancel", running).code == 0
        assert dev.until(event="ended")["job"]["state"] == "CANCELLED"
        commands = shell("run", "-q", "true")
        assert commands.code == 0
        last = shell("enqueue", "count", "-a", "to=0").id
        assert dev.until(event="ended")["job"]["job_id"] == last  # jobs of others are not shown


def test_an_edit_is_imported_a_broken_one_is_told_and_a_mended_one_works_again(shell: Shell) -> None:
    with developing(shell) as dev:
        dev.until(event="app")
        write(shell, CODE + MORE)
        assert dev.until(event="changed")["files"] == ["shop.py"]
        assert dev.until(event="app")["app"]["tasks"] == 4
        assert "more" in tasks_of(shell)
        write(shell, CODE + MORE + "\nraise RuntimeError('half written')\n")
        failed = dev.until(event="app")["app"]
        assert failed["state"] == "failed"
        assert "RuntimeError: half written" in failed["error"]
        assert "shop.py" in failed["traceback"]
        write(shell, CODE)
        assert dev.until(event="app")["app"]["state"] == "ready"
        assert "more" not in tasks_of(shell)
        assert shell("result", "-w", shell("enqueue", "count", "-a", "to=1").id).out == "1\n"


def test_it_begins_with_broken_code_too(shell: Shell) -> None:
    with developing(shell, "def broken(:\n") as dev:
        assert "SyntaxError" in dev.until(event="app")["app"]["error"]
        write(shell, CODE)
        assert dev.until(event="app")["app"]["state"] == "ready"


def test_at_its_end_the_daemon_that_it_started_is_gone_and_the_app_too(shell: Shell) -> None:
    with developing(shell) as dev:
        dev.until(event="app")
        pid = shell.daemon_pid()
        code, said = dev.end(signal.SIGTERM)
    assert (code, alive(pid)) == (0, False)
    assert "ended" in said
    assert json.loads((shell.home / "apps.json").read_text()) == {"apps": {}}
    eventually(lambda: not processes_of(shell.home), what="processes")


def test_a_daemon_that_ran_goes_on_and_an_app_that_was_there_stays(shell: Shell) -> None:
    assert shell("up").code == 0
    pid = shell.daemon_pid()
    with developing(shell) as dev:
        dev.until(event="app")
        assert shell.daemon_pid() == pid
        assert dev.end()[0] == 0
    assert shell("apps", "-q").out == ""
    assert shell("up", "--app", "shop", cwd=write(shell, CODE)).code == 0
    with developing(shell) as dev:
        dev.until(event="app")
        assert dev.end()[0] == 0
    assert shell("apps", "-q").out == "shop\n"
    assert shell.daemon_pid() == pid


def test_another_app_of_its_name_is_not_replaced(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "shop.py").write_text(CODE)
    assert shell("apps", "add", "shop", "--cwd", str(tmp_path / "other")).code == 0
    refused = shell("dev", "shop", "--name", "shop", cwd=write(shell, CODE))
    assert refused.code == 5
    assert "there is another app named 'shop'" in refused.err


def test_what_a_person_sees_and_ctrl_c(shell: Shell) -> None:
    project = write(shell, CODE)
    argv = [*COMMAND, "dev", "shop", "--cwd", str(project)]
    with Terminal(argv, shell.env) as terminal:
        terminal.read_until("app shop: 3 tasks (count, flaky, sleep)")
        running = shell("enqueue", "sleep").id[-8:]
        terminal.read_until(f"{running} sleep begins")
        terminal.read_until("sleeping")
        write(shell, CODE + "\nprint(undefined)\n")
        terminal.read_until("shop.py changed: importing shop again")
        terminal.read_until("NameError: name 'undefined' is not defined")
        done = shell("cancel", running)
        assert done.code == 0
        terminal.read_until(f"{running} sleep was cancelled")
        terminal.press(b"\x03")
        code, text = terminal.finish()
    assert code == 0
    assert "Traceback (most recent call last)" in text  # that of the app
    assert "KeyboardInterrupt" not in text
    assert text.endswith("semtask: ended\n")
