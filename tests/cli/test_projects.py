"""Two projects with a task of the same name: neither ever runs the other's code, whichever way it gets there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.rig import Said, Shell, eventually, processes_of

CODE = """
from pathlib import Path
from semtask import Semantica

app = Semantica({arguments})

@app.task
def send(text: str = "") -> str:
    with open({ran!r}, "a") as file:
        file.write("{project}\\n")
    return "{project}"
"""
ENQUEUE = "import tasks; print(tasks.send.enqueue().id)"
RESULT = "import tasks; print(tasks.send.enqueue().result(30))"


class Projects:
    """Folders with a module `tasks` each. `ran` says whose code ran."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.root = shell.home.parent
        self.ran = self.root / "ran"

    def write(self, project: str, arguments: str = "", more: str = "") -> Path:
        folder = self.root / project
        folder.mkdir(exist_ok=True)
        code = CODE.format(project=project, arguments=arguments, ran=str(self.ran))
        (folder / "tasks.py").write_text(code + more)
        return folder

    def python(self, project: str, code: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.root / project,
            env=self.shell.env,
            capture_output=True,
            text=True,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def apps(self) -> dict[str, dict[str, Any]]:
        return {app["name"]: app for app in self.shell("apps", "--json").json_lines}

    def states(self) -> dict[str, str]:
        return {name: app["state"] for name, app in self.apps().items()}

    def who_ran(self) -> set[str]:
        return set(self.ran.read_text().split()) if self.ran.exists() else set()


@pytest.fixture
def projects(shell: Shell) -> Projects:
    found = Projects(shell)
    found.write("alpha")
    found.write("beta")
    up = shell("up", "--app", "tasks", cwd=found.root / "alpha")
    assert up.code == 0, up
    return found


def test_the_newcomer_is_refused_with_both_places_by_every_door(projects: Projects, shell: Shell) -> None:
    alpha, beta = projects.root / "alpha", projects.root / "beta"
    before = (shell.home / "apps.json").read_text()
    link = projects.root / "link"
    link.symlink_to(alpha)
    doors: list[tuple[list[str], str]] = [
        (["up", "--app", "tasks", "--cwd", str(beta)], "app beta-tasks is refused: its task 'tasks:send'"),
        (["apps", "add", "tasks", "--cwd", str(beta)], "app beta-tasks is refused: its task 'tasks:send'"),
        (["apps", "add", "tasks", "--cwd", str(beta), "-n", "aaa"], "app aaa is refused: its task 'tasks:send'"),
        (["dev", "tasks", "--cwd", str(beta)], "app beta-tasks is refused: its task 'tasks:send'"),
        (["apps", "add", "tasks", "--cwd", str(beta), "-n", "tasks"], "there is another app 'tasks'"),
        (["apps", "add", "tasks", "--cwd", str(link), "-n", "twin"], "it is the app 'tasks' a second time"),
    ]
    for argv, said in doors:
        refused = shell(*argv)
        assert refused.code == 5, (argv, refused)
        assert said in refused.err
        assert f"tasks:app in {alpha}, run by {sys.executable}" in refused.err
        if "refused: its task" in said:
            assert f"tasks:app in {beta}, run by {sys.executable}" in refused.err
        assert projects.states() == {"tasks": "ready"}
        assert (shell.home / "apps.json").read_text() == before
    assert shell("up", "--app", "tasks", cwd=alpha).code == 0
    assert shell("up", "--app", "tasks", "--cwd", str(link)).code == 0  # the same project
    assert list(projects.apps()) == ["tasks"]
    assert projects.python("alpha", RESULT).out == "alpha\n"
    assert projects.who_ran() == {"alpha"}


def test_a_job_of_the_one_is_never_run_by_the_other(projects: Projects, shell: Shell) -> None:
    alpha, beta = projects.root / "alpha", projects.root / "beta"
    refused = projects.python("beta", ENQUEUE)
    assert refused.code == 1
    (line,) = [line for line in refused.err.splitlines() if "Conflict" in line]
    assert f"'tasks' is that of {alpha}/tasks.py, not that of {beta}/tasks.py" in line
    assert shell("ls", "--all", "-q").out == ""

    # Stored while nobody offers the name: it waits for its own project.
    assert shell("apps", "rm", "tasks").code == 0
    foreign = projects.python("beta", ENQUEUE).out.strip()
    assert shell("up", "--app", "tasks", cwd=alpha).code == 0
    job = shell.until(foreign, "FAILED")
    assert f"it was enqueued by {beta}/tasks.py" in job["error"]
    assert f"is that of {alpha}/tasks.py" in job["error"]
    again = shell("retry", foreign).id
    assert "it was enqueued by" in shell.until(again, "FAILED")["error"]
    assert projects.who_ran() == set()

    assert shell("apps", "rm", "tasks").code == 0
    assert shell("up", "--app", "tasks", cwd=beta).code == 0
    assert projects.python("beta", RESULT).out == "beta\n"
    assert projects.who_ran() == {"beta"}


def test_a_list_edited_by_hand_and_a_restart_leave_the_first_app_what_it_has(projects: Projects, shell: Shell) -> None:
    beta = projects.root / "beta"
    file = shell.home / "apps.json"
    listed = json.loads(file.read_text())["apps"]
    listed["aaa"] = {"module": "tasks:app", "directory": str(beta), "python": sys.executable}
    file.write_text(json.dumps({"apps": listed}))
    assert shell("apps", "reload").code == 1
    assert projects.states() == {"aaa": "failed", "tasks": "ready"}
    assert projects.apps()["aaa"]["conflict_with"] == "tasks"
    assert "apps: aaa (failed), tasks" in shell("status").out
    doctor = shell("doctor")
    assert doctor.code == 1
    assert f"tasks:app in {beta}, run by" in doctor.out

    # Its owner keeps the name while it cannot be imported, and takes it up again.
    projects.write("alpha", more="raise RuntimeError\n")
    assert shell("apps", "reload").code == 1
    assert projects.states() == {"aaa": "failed", "tasks": "failed"}
    by_name = shell("enqueue", "tasks:send").id
    assert projects.python("beta", ENQUEUE).code == 0
    projects.write("alpha")
    shell("apps", "reload")
    assert projects.states() == {"aaa": "failed", "tasks": "ready"}
    shell.until(by_name, "DONE")

    # At a start too, although the other one is imported sooner.
    assert shell("pause", "default").code == 0
    waiting = shell("enqueue", "tasks:send").id
    assert shell("down").code == 0
    projects.write("alpha", more="import time\ntime.sleep(2)\n")
    assert shell("up").code == 0
    assert shell("resume", "default").code == 0
    shell.until(waiting, "DONE")
    eventually(lambda: projects.states() == {"aaa": "failed", "tasks": "ready"}, what="the apps are imported")
    assert projects.who_ran() == {"alpha"}

    # Once the name is free, the other one has it.
    projects.write("alpha", more="app.registry._tasks.clear()\n")
    shell("apps", "reload", "tasks")
    eventually(lambda: projects.states() == {"aaa": "ready", "tasks": "ready"}, what="the name is free")
    assert projects.python("beta", RESULT).out == "beta\n"


def test_an_app_that_takes_a_name_later_is_the_newcomer(projects: Projects, shell: Shell) -> None:
    gamma = projects.root / "gamma"
    gamma.mkdir()
    code = (
        "from semtask import Semantica\napp = Semantica()\n@app.task(name='{}')\ndef other() -> str: return 'gamma'\n"
    )
    (gamma / "aaa.py").write_text(code.format("gamma.other"))
    assert shell("up", "--app", "aaa", cwd=gamma).code == 0
    (gamma / "aaa.py").write_text(code.format("tasks:send"))
    reloaded = shell("apps", "reload", "aaa")
    assert reloaded.code == 1
    assert f"its task 'tasks:send' (aaa:app in {gamma}" in reloaded.err
    assert projects.states() == {"aaa": "failed", "tasks": "ready"}
    assert shell("result", "-w", shell("enqueue", "tasks:send").id).out == '"alpha"\n'

    # So is one that stands first in the list.
    (gamma / "aaa.py").write_text(code.format("gamma.other"))
    assert shell("apps", "reload", "aaa").code == 0
    projects.write("alpha", more="@app.task(name='gamma.other')\ndef other() -> str: return 'alpha'\n")
    reloaded = shell("apps", "reload", "tasks")
    assert reloaded.code == 1
    assert "its task 'gamma.other' (tasks:app in " in reloaded.err
    assert projects.states() == {"aaa": "ready", "tasks": "failed"}
    assert shell("result", "-w", shell("enqueue", "gamma.other").id).out == '"gamma"\n'
    projects.write("alpha")
    assert shell("apps", "reload", "tasks").code == 0


def test_a_project_that_lies_in_two_folders_is_named(projects: Projects, shell: Shell) -> None:
    assert shell("apps", "rm", "tasks").code == 0
    one, _ = projects.write("one", "project='shop'"), projects.write("two", "project='shop'")
    assert shell("up", "--app", "tasks", cwd=one).code == 0
    assert projects.python("two", RESULT).out == "one\n"
    assert projects.python("beta", ENQUEUE).code == 1


def test_two_homes_have_nothing_to_do_with_each_other(projects: Projects, shell: Shell, tmp_path: Path) -> None:
    other = Shell(tmp_path / "other-home")
    try:
        assert other("up", "--app", "tasks", cwd=projects.root / "beta").code == 0
        assert other("result", "-w", other("enqueue", "tasks:send").id).out == '"beta"\n'
        assert projects.python("alpha", RESULT).out == "alpha\n"
    finally:
        other.stop()
    assert not processes_of(other.home)
