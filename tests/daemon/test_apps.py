"""Apps of several projects on one daemon: each with its own interpreter, and what becomes of those that are broken."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, Json, RpcFailed, eventually, running_daemon

ROOT = Path(__file__).resolve().parents[2]
BODY = """
from semtask import Semantica
app = Semantica()
"""
READY_MS = 30_000


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running_daemon(tmp_path / "home") as running:
        yield running


def write(folder: Path, text: str, module: str = "tasks") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(BODY + text)
    return folder


def set_apps(daemon: Daemon, **apps: tuple[Path, str]) -> dict[str, Json]:
    """name=(directory, interpreter). Returns the apps when each was imported or has failed."""
    listed = {
        name: {"module": "tasks:app", "directory": str(directory), "python": python}
        for name, (directory, python) in apps.items()
    }
    file = daemon.home / "apps.json"
    file.write_text(json.dumps({"apps": listed}))
    file.chmod(0o600)
    answer = daemon.rpc("apps.reload.v1", wait_ms=READY_MS)
    return {app["name"]: app for app in answer["apps"]}


def enqueue(daemon: Daemon, task: str, **payload: object) -> str:
    answer = daemon.rpc("dev.enqueue.v1", job_type=task, execution_mode="IN_PROCESS", payload=payload)
    return str(answer["job_id"])


def result(daemon: Daemon, job_id: str) -> object:
    [job] = daemon.wait(job_id)
    assert job["state"] == "DONE", job["error"]
    return daemon.job(job_id, "result")["result"]


def virtualenv(folder: Path, version: str) -> str:
    """A virtual environment with semtask and one version of a library of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "semtask.pth").write_text("\n".join([str(ROOT / "src"), *site.getsitepackages()]))
    (packages / "thelib.py").write_text(f"VERSION = {version!r}\n")
    return str(folder / "bin" / "python")


def test_two_apps_with_two_virtualenvs_have_each_its_own_version_of_a_library(daemon: Daemon, tmp_path: Path) -> None:
    task = "@app.task(name='{name}')\ndef version() -> list[str]:\n    import os, sys, thelib\n"
    task += "    return [thelib.VERSION, sys.prefix, os.getcwd()]\n"
    first = write(tmp_path / "one", task.format(name="one"))
    second = write(tmp_path / "two", task.format(name="two"))
    apps = set_apps(
        daemon,
        one=(first, virtualenv(tmp_path / "venv1", "1.0")),
        two=(second, virtualenv(tmp_path / "venv2", "2.0")),
    )
    assert {(app["state"], app["tasks"]) for app in apps.values()} == {("ready", 1)}
    one, two = enqueue(daemon, "one"), enqueue(daemon, "two")
    assert result(daemon, one) == ["1.0", str(tmp_path / "venv1"), str(first)]
    assert result(daemon, two) == ["2.0", str(tmp_path / "venv2"), str(second)]


def test_an_app_that_cannot_be_imported_says_why_on_its_jobs_and_runs_them_when_it_is_mended(
    daemon: Daemon, tmp_path: Path
) -> None:
    folder = write(tmp_path / "app", "import no_such_module\n")
    app = set_apps(daemon, broken=(folder, sys.executable))["broken"]
    assert app["state"] == "failed"
    assert "no_such_module" in app["error"]
    assert "tasks.py" in app["traceback"]
    job_id = enqueue(daemon, "tasks:add", a=1)
    waiting = daemon.job(job_id)["waiting"]
    assert (waiting["reason"], "no_such_module" in waiting["text"]) == ("app_failed", True)
    write(folder, "@app.task\ndef add(a: int) -> int:\n    return a + 1\n")
    daemon.rpc("apps.reload.v1", app="broken")
    assert result(daemon, job_id) == 2


def test_other_apps_go_on_beside_one_that_hangs_while_it_is_imported(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    config = tmp_path / "home" / ".config" / "semtask"
    config.mkdir(parents=True)
    (config / "config.toml").write_text("worker_start_timeout_ms = 1500\n")
    with running_daemon(home) as daemon:
        hanging = write(tmp_path / "hang", "import time\ntime.sleep(60)\n")
        good = write(tmp_path / "good", "@app.task(name='ok')\ndef ok() -> int:\n    return 1\n")
        set_apps(daemon, hang=(hanging, sys.executable), good=(good, sys.executable))
        assert result(daemon, enqueue(daemon, "ok")) == 1
        apps = {app["name"]: app for app in daemon.rpc("apps.list.v1")["apps"]}
        assert apps["hang"]["state"] == "failed"
        assert "1.5 s" in apps["hang"]["error"] or "1500" in apps["hang"]["error"], apps["hang"]["error"]


def test_an_interpreter_without_semtask_is_named(daemon: Daemon, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = str(tmp_path / "bare" / "bin" / "python")
    folder = write(tmp_path / "app", "@app.task\ndef f() -> None: ...\n")
    apps = set_apps(daemon, bare=(folder, bare), missing=(folder, str(tmp_path / "no-python")))
    assert bare in apps["bare"]["error"]
    assert "no semtask" in apps["bare"]["error"]
    assert "no-python" in apps["missing"]["error"]


def test_two_apps_that_offer_one_task_cannot_both_be_used(daemon: Daemon, tmp_path: Path) -> None:
    folder = write(tmp_path / "app", "@app.task(name='same')\ndef f() -> int:\n    return 1\n")
    other = write(tmp_path / "other", "@app.task(name='same')\ndef f() -> int:\n    return 2\n")
    apps = set_apps(daemon, first=(folder, sys.executable), second=(other, sys.executable))
    assert [apps[name]["state"] for name in ("first", "second")] == ["ready", "failed"]
    assert "'same'" in apps["second"]["error"]
    assert "'first'" in apps["second"]["error"]
    assert result(daemon, enqueue(daemon, "same")) == 1


def test_arguments_that_do_not_fit_are_refused_when_they_come(daemon: Daemon, tmp_path: Path) -> None:
    folder = write(tmp_path / "app", "@app.task(name='f')\ndef f(path: str, n: int = 1) -> int:\n    return n\n")
    set_apps(daemon, app=(folder, sys.executable))
    for payload, named in [
        ({}, "`path`"),
        ({"path": 7}, "$.path"),
        ({"path": "a", "m": 1}, "`m`"),
        ({"path": "a", "n": "x"}, "$.n"),
    ]:
        with pytest.raises(RpcFailed) as refused:
            enqueue(daemon, "f", **payload)  # type: ignore[arg-type]
        assert refused.value.code == 4000
        assert named in refused.value.message
    assert result(daemon, enqueue(daemon, "f", path="a", n=3)) == 3


def test_a_payload_for_an_older_version_of_a_function_fails_once_and_says_so(daemon: Daemon, tmp_path: Path) -> None:
    job_id = enqueue(daemon, "f", path="a")  # nobody knows the signature yet
    folder = write(tmp_path / "app", "@app.task(name='f', retry=5)\ndef f(file: str) -> int:\n    return 1\n")
    set_apps(daemon, app=(folder, sys.executable))
    [job] = daemon.wait(job_id)
    assert (job["state"], job["end_cause"], job["attempts"]) == ("FAILED", "bad_payload", 1)
    assert "path" in job["error"]
    assert "file" in job["error"]


def test_a_reload_lets_running_jobs_end_in_the_old_worker_and_runs_new_ones_anew(
    daemon: Daemon, tmp_path: Path
) -> None:
    task = "import time, pathlib\n@app.task(name='f')\ndef f(until: str) -> list[int]:\n"
    task += "    pathlib.Path('began').touch()\n"
    task += "    while not pathlib.Path(until).exists():\n        time.sleep(0.01)\n    return [{number}]\n"
    folder = write(tmp_path / "app", task.format(number=1))
    set_apps(daemon, app=(folder, sys.executable))
    old = enqueue(daemon, "f", until=str(tmp_path / "go"))
    eventually((folder / "began").exists, what="it runs, and not only its claim")
    write(folder, task.format(number=2))
    os.utime(folder / "tasks.py", (1, 1))  # no stale byte code
    daemon.rpc("apps.reload.v1", wait_ms=READY_MS)
    new = enqueue(daemon, "f", until=str(folder / "tasks.py"))
    assert result(daemon, new) == [2]
    (tmp_path / "go").touch()
    assert result(daemon, old) == [1]
    eventually(lambda: len(daemon.rpc("workers.list.v1")["workers"]) <= 2, what="the old worker has left")
