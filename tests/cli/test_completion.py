"""What the shell offers, through the scripts that it sources."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.rig import COMMAND, LIMIT_S, Shell


def offered(shell: Shell, line: str, **env: str) -> list[str]:
    """The words for the end of `line`, as bash gets them."""
    words = line.split(" ")
    done = subprocess.run(
        COMMAND,
        env={
            **shell.env,
            "_SEMTASK_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            **env,
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stderr == ""
    return [word.partition(",")[2] for word in done.stdout.split("\n") if word]


def test_commands_and_options(served: Shell) -> None:
    assert offered(served, "semtask re") == ["result", "retry", "resume"]
    assert "--on-duplicate" in offered(served, "semtask run --on")
    assert offered(served, "semtask run --on-duplicate su") == ["supersede", "supersede_running"]
    assert offered(served, "semtask db r") == ["restore", "rollback"]


def test_jobs_queues_and_tags(served: Shell) -> None:
    job_id = served("run", "-d", "-Q", "complete-q", "-t", "complete-t", "--subject", "complete-s", "true").id
    assert job_id[-8:] in offered(served, "semtask logs ")
    assert offered(served, f"semtask show {job_id[-8:-2]}") == [job_id[-8:]]
    assert offered(served, f"semtask cancel {job_id[:-1]}") == [job_id]
    assert offered(served, "semtask show las") == ["last"]
    assert "@complete-s" in offered(served, "semtask wait @comp")
    assert offered(served, "semtask run -Q complete") == ["complete-q"]
    assert offered(served, "semtask pause complete") == ["complete-q"]
    assert offered(served, "semtask ls --tag complete") == ["complete-t"]
    assert offered(served, "semtask retry --failed -Q complete") == ["complete-q"]


def test_the_home_on_the_line_counts(served: Shell, tmp_path: Path) -> None:
    served("run", "-d", "true")
    assert len(offered(served, "semtask show ")) > 1
    assert offered(served, f"semtask --home {tmp_path} show ") == ["last"]


def test_apps_and_tasks(served: Shell) -> None:
    project = served.home.parent / "project"
    project.mkdir()
    (project / "shop.py").write_text(
        "from semtask import Semantica\napp = Semantica()\n@app.task(name='shop.sell')\ndef sell() -> None: ...\n"
    )
    assert served("up", "--app", "shop", cwd=project).code == 0
    assert offered(served, "semtask enqueue shop") == ["shop.sell"]
    assert offered(served, "semtask tasks show ") == ["shop.sell"]
    assert offered(served, "semtask apps rm s") == ["shop"]
    assert offered(served, "semtask apps re") == ["reload"]


def test_without_a_daemon_it_is_silent_quick_and_starts_nothing(shell: Shell) -> None:
    begin = time.monotonic()
    assert offered(shell, "semtask show ") == ["last"]
    assert offered(shell, "semtask pause ") == []
    assert offered(shell, "semtask pause ", SEMANTICA_MAX_PROCESSES="nonsense") == []
    assert offered(shell, "semtask pause ", COMP_CWORD="nonsense") == []
    assert time.monotonic() - begin < 5
    assert not shell.home.exists()


def test_a_daemon_that_hangs_is_not_waited_for(shell: Shell) -> None:
    from tests.client.fake import serving

    released = threading.Event()

    def silent(connection: socket.socket, request: dict[str, Any]) -> bool:
        released.wait(30)
        return False

    with serving(shell.home / "run") as fake:
        fake.script = [silent]
        begin = time.monotonic()
        assert offered(shell, "semtask pause ") == []
        assert time.monotonic() - begin < 20
        released.set()
    shutil.rmtree(shell.home)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_script(served: Shell, tmp_path: Path) -> None:
    """bash runs `semtask` by its name, so there must be one on PATH."""
    program = tmp_path / "semtask"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m semtask "$@"\n')
    program.chmod(0o755)
    script = served("completion", "bash").out
    assert served("completion", "bash", "--json").json == {
        "schema": "completion.v1",
        "shell": "bash",
        "script": script.removesuffix("\n"),
    }
    lines = f"{script}\nCOMP_WORDS=(semtask stat) COMP_CWORD=1\n_semtask_completion semtask\necho ${{COMPREPLY[@]}}"
    env = {**served.env, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", lines], env=env, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert (done.stdout, done.stderr) == ("status\n", "")


@pytest.mark.parametrize(
    ("name", "place", "mark"),
    [
        ("bash", ".local/share/bash-completion/completions/semtask", "complete -o nosort"),
        ("zsh", ".local/share/zsh/site-functions/_semtask", "#compdef semtask"),
        ("fish", ".config/fish/completions/semtask.fish", "complete --no-files --command semtask"),
    ],
)
def test_install_puts_it_where_the_shell_looks(shell: Shell, name: str, place: str, mark: str) -> None:
    env = dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME"), "")
    for _ in range(2):
        said = shell("completion", name, "--install", env=env)
        assert said.code == 0, said
    path = shell.home.parent / place
    assert said.out == f"{path}\n"
    assert mark in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert shell("completion", name, env=env).out.strip() == path.read_text().strip()
