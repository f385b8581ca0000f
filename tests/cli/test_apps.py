"""Apps from the command line: what they offer, what becomes of their jobs, what is said of broken ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
from pathlib import Path

import pytest

from tests.cli.rig import Shell, eventually

CODE = '''
from semtask import Retry, Semantica, current_job

app = Semantica()

@app.task(name="add", queue="math", retry=Retry(3, base=0.05), timeout=60, tag="sums")
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    print("adding", a, b)
    return a + b

@app.task(name="greet")
async def greet(name: str) -> str:
    return f"hello {name}"

@app.task(name="fail")
def fail(message: str) -> None:
    raise ValueError(message)

@app.task(name="big")
def big(size: int) -> str:
    return "x" * size

@app.task(name="report")
def report(text: str) -> None:
    job = current_job()
    job.progress(3, 12, "writing")
    job.artifact("report.txt", text.encode())
    job.artifact("other.txt", b"other")
'''


def write_app(folder: Path, name: str = "shop", code: str = CODE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def shop(served: Shell) -> Shell:
    """A daemon with the app `shop`."""
    project = write_app(served.home.parent / "project")
    up = served("up", "--app", "shop:app", cwd=project)
    assert up.code == 0, up
    return served


# --- the list --------------------------------------------------------------------------------------------------------


def test_up_with_an_app_starts_the_daemon_imports_the_app_and_may_be_repeated(shell: Shell) -> None:
    project = write_app(shell.home.parent / "project")
    up = shell("up", "--app", "shop", cwd=project)
    assert up.code == 0, up
    assert up.out.splitlines()[1:] == ["app shop: 5 tasks"]
    list_file = shell.home / "apps.json"
    before = list_file.stat()
    assert stat.S_IMODE(before.st_mode) == 0o600
    again = shell("up", "--app", "shop:app", "--json", cwd=project).json
    assert again["app"]["tasks"] == 5
    assert again["schema"] == "status.v1"
    assert os.path.samestat(before, list_file.stat())
    (app,) = shell("apps", "--json").json_lines
    expected = {"name": "shop", "module": "shop:app", "directory": str(project), "python": sys.executable}
    assert app | expected == app
    assert app["state"] == "ready"


def test_up_reads_the_code_as_it_is_now(shell: Shell) -> None:
    project = write_app(shell.home.parent / "project")
    assert "5 tasks" in shell("up", "--app", "shop", cwd=project).out
    write_app(project, code=CODE + '\n@app.task(name="one-more")\ndef one_more() -> None: ...\n')
    assert "6 tasks" in shell("up", "--app", "shop", cwd=project).out


def test_a_second_app_of_the_same_module_gets_a_name_of_its_own(shop: Shell, tmp_path: Path) -> None:
    other = write_app(tmp_path / "other.d", code="from semtask import Semantica\napp = Semantica()\n")
    assert shop("apps", "add", "shop", cwd=other).out == "app other_d-shop: 0 tasks\n"
    assert shop("apps", "add", "shop", cwd=other).out == "app other_d-shop: 0 tasks\n"
    named = shop("apps", "add", "shop:app", "--name", "third", "--cwd", str(other))
    assert (named.code, named.out) == (0, "app third: 0 tasks\n")
    assert shop("apps", "-q").out.split() == ["other_d-shop", "shop", "third"]
    assert shop("apps", "rm", "third", "other_d-shop").code == 0
    assert shop("apps", "ls", "-q").out.split() == ["shop"]


def test_a_task_that_cannot_be_offered_is_named_with_its_parameter(shop: Shell, tmp_path: Path) -> None:
    code = "from semtask import Semantica\napp = Semantica()\n@app.task(name='odd')\ndef odd(x: complex): ...\n"
    other = write_app(tmp_path / "odd", code=code + "@app.task(name='even')\ndef even(x: int): ...\n")
    why = "parameter 'x' of the task odd: complex has no JSON form; write tuple[float, float]"
    added = shop("apps", "add", "shop", "--name", "odd", cwd=other)
    assert (added.code, added.out) == (0, "app odd: 1 task\n")
    assert f"app odd does not offer one of its tasks: {why}" in added.err
    assert f"refused    {why}" in shop("apps", "show", "odd").out
    assert f"odd does not offer one of its tasks: {why}" in shop("doctor").out
    assert "even" in shop("tasks", "-q").out.split()
    assert shop("apps", "rm", "odd").code == 0


def test_apps_are_added_and_removed_without_a_daemon_and_imported_at_its_start(shell: Shell) -> None:
    project = write_app(shell.home.parent / "project")
    added = shell("apps", "add", "shop", cwd=project)
    assert added.code == 0
    assert "no daemon runs" in added.err
    assert not (shell.home / "run").exists()
    assert shell("up").code == 0
    eventually(lambda: shell("tasks", "-q").out.split() == ["add", "big", "fail", "greet", "report"], what="tasks")
    assert shell("down").code == 0
    assert shell("apps", "rm", "shop").code == 0
    missing = shell("apps", "rm", "shop")
    assert (missing.code, missing.err) == (4, "semtask: there is no app 'shop'; `semtask apps` lists them\n")


def test_an_app_of_the_settings(shell: Shell) -> None:
    project = write_app(shell.home.parent / "project")
    settings = shell.home.parent / ".config" / "semtask" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'[apps.shop]\nmodule = "shop"\ndirectory = "{project}"\n')
    settings.chmod(0o600)
    assert shell("up").code == 0
    assert shell("apps", "reload", "shop").out == "app shop: 5 tasks\n"
    refused = shell("apps", "rm", "shop")
    assert refused.code == 5
    assert f"'shop' is defined in {settings}; remove it there" in refused.err
    refused = shell("apps", "add", "shop", "--name", "shop", "--cwd", str(project.parent))
    assert refused.code == 5
    assert f"'shop' is defined in {settings}; change it there" in refused.err


def test_a_broken_app_is_told_with_its_error_and_mended_by_a_reload(shell: Shell) -> None:
    project = write_app(shell.home.parent / "project", code="import no_such_module\n")
    up = shell("up", "--app", "shop", cwd=project)
    assert up.code == 1
    (line,) = [line for line in up.err.splitlines() if "app shop: " in line]
    assert "ModuleNotFoundError: No module named 'no_such_module'" in line
    assert "`semtask apps show shop` has the traceback" in line
    as_json = shell("up", "--app", "shop", "--json", cwd=project)
    assert as_json.code == 1
    assert "no_such_module" in as_json.json["error"]["message"]
    shown = shell("apps", "show", "shop").out
    assert "state      failed" in shown
    assert f'File "{project}/shop.py", line 1' in shown
    assert "Traceback" in shell("up", "--app", "shop", cwd=project, env={"SEMANTICA_DEBUG": "1"}).err
    assert "apps: shop (failed)\n" in shell("status").out
    doctor = shell("doctor")
    assert doctor.code == 1
    assert "no_such_module" in doctor.out
    active = shell("apps", "reload", "shop", env={"VIRTUAL_ENV": "/srv/venv"})
    assert "for the active virtualenv add --python /srv/venv/bin/python" in active.err
    write_app(project)
    assert shell("apps", "reload").out == "app shop: 5 tasks\n"
    assert "shop: 5 tasks, run by" in shell("doctor").out


def test_an_interpreter_that_cannot_be_used_is_a_finding_of_doctor(shell: Shell, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'semtask'\" >&2\nexit 1\n")
    python.chmod(0o700)
    write_app(tmp_path / "project")
    assert shell("apps", "add", "shop", "--cwd", str(tmp_path / "project"), "--python", str(python)).code == 0
    (found,) = [check for check in shell("doctor", "--json").json["checks"] if check["name"] == "apps"]
    assert found["verdict"] == "fail"
    assert "has no semtask that can be used (ModuleNotFoundError: No module named 'semtask')" in found["text"]
    assert found["fix"].startswith(f"{python} -m pip install semtask==")
    python.unlink()
    (found,) = [check for check in shell("doctor", "--json").json["checks"] if check["name"] == "apps"]
    assert f"{python} cannot be used: No such file or directory" in found["text"]
    assert found["fix"].startswith("semtask apps add shop:app --name shop --cwd ")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["up", "--app", "shop.py"], 2, "is a file; name the module as an import does"),
        (["up", "--app", "not a module"], 2, "is no module"),
        (["up", "--name", "x"], 2, "--name goes with --app only"),
        (["apps", "add", "shop", "--name", "a b"], 2, "is no name of an app"),
        (["apps", "add", "shop", "--cwd", "/nowhere"], 2, "'/nowhere' is no directory"),
        (["apps", "add", "shop", "--python", "/nowhere/python"], 2, "/nowhere/python is no program"),
        (["apps", "show", "nothing"], 4, "`semtask apps` lists them"),
        (["apps", "reload", "nothing"], 4, "nothing"),
        (["tasks", "show", "ad"], 4, "did you mean 'add'?"),
        (["artifacts", "ls", "00000000-0000-7000-8000-000000000000"], 4, "there is no job"),
    ],
)
def test_what_is_refused(shop: Shell, argv: list[str], code: int, said: str) -> None:
    refused = shop(*argv)
    assert refused.code == code, refused
    assert said in refused.err
    assert refused.err.count("\n") == 1


# --- tasks and workers -----------------------------------------------------------------------------------------------


def test_tasks_and_what_is_known_of_one(shop: Shell) -> None:
    assert shop("tasks", "ls").out.splitlines()[0] == "add\tshop\tsync\tmath\tAdd two numbers."
    shown = shop("tasks", "show", "add").out
    assert re.search("^max_attempts +3$", shown, re.MULTILINE)
    assert re.search("^returns +integer$", shown, re.MULTILINE)
    assert "a: integer\n" in shown
    assert "b?: integer = 2\n" in shown
    assert shown.endswith("\n\nAdd two numbers.\n")
    task = shop("tasks", "show", "greet", "--json").json
    assert (task["schema"], task["app"], task["is_async"]) == ("task.v1", "shop", True)


def test_workers_are_listed(shop: Shell) -> None:
    assert shop("result", "-w", shop("enqueue", "add", "-a", "a=1").id).code == 0
    found = shop("workers", "--json").json_lines
    assert {worker["app"] for worker in found} == {"shop"}
    assert any(worker["jobs_done"] >= 1 for worker in found)
    assert all(worker["started_at"].endswith("Z") for worker in found)
    (line,) = [line for line in shop("status").out.splitlines() if line.startswith("workers: ")]
    assert line != "workers: none"


SHAPES = {
    ("apps",): "schema name module directory python state tasks workers refused error traceback conflict_with",
    ("tasks",): "schema name app is_async parameters returns doc defaults concurrency source",
    ("workers",): "schema worker app pid state kind running jobs_done started_at python",
    ("artifacts", "ls", "last"): "schema name size sha256 path is_result",
}


@pytest.mark.parametrize("argv", SHAPES)
def test_the_shapes_of_json_stay(shop: Shell, argv: tuple[str, ...]) -> None:
    assert shop("result", "-w", shop("enqueue", "big", "-a", "size=300000").id).code == 0
    for value in shop(*argv, "--json").json_lines:
        assert list(value) == SHAPES[argv].split()
        assert re.fullmatch(r"(app|task|worker|artifact)\.v1", value["schema"])


# --- enqueue and result ----------------------------------------------------------------------------------------------


def test_a_task_is_enqueued_as_it_declares_and_its_result_is_printed(shop: Shell) -> None:
    enqueued = shop("enqueue", "add", "--arg", "a=40")
    assert enqueued.err == ""
    job_id = enqueued.id
    result = shop("result", "--wait", job_id)
    assert (result.code, result.out, result.err) == (0, "42\n", "")
    job = shop.job(job_id)
    assert (job["queue"], job["max_attempts"], job["retry_base_delay_ms"]) == ("math", 3, 50)
    assert (job["timeout_ms"], job["tag"], job["result"]) == (60_000, "sums", 42)
    assert job["payload"] == {"a": 40}
    given = shop.job(shop("enqueue", "add", "-a", "a=1", "-Q", "other", "--retries", "0", "-t", "mine").id)
    assert (given["queue"], given["max_attempts"], given["tag"], given["timeout_ms"]) == ("other", 1, "mine", 60_000)
    shown = shop("show", job_id).out
    assert "task           add\n" in shown
    assert "result         42\n" in shown
    assert "adding 40 2" in shop("logs", job_id).out


def test_an_argument_is_text_where_the_task_wants_text(shop: Shell) -> None:
    assert shop("result", "-w", shop("enqueue", "greet", "-a", "name=5").id).out == '"hello 5"\n'
    payload = shop("enqueue", "greet", "--payload", '{"name": "ü"}')
    assert shop("result", "-w", payload.id).out == '"hello ü"\n'


def test_arguments_that_do_not_fit_are_refused_at_once(shop: Shell) -> None:
    refused = shop("enqueue", "add", "-a", "a=five")
    assert refused.code == 2, refused
    assert "five" not in shop("ls", "-q").out
    assert shop("enqueue", "add").code == 2


def test_a_task_that_no_app_offers_waits_and_one_is_told(shop: Shell) -> None:
    waiting = shop("enqueue", "grete", "-a", "name=x")
    assert waiting.code == 0
    assert waiting.err == (
        "semtask: no app offers the task 'grete' (did you mean 'greet'?); "
        "the job waits until one does (see `semtask apps`)\n"
    )
    assert shop("enqueue", "grete", "-q").err == ""
    assert shop.job(waiting.id)["waiting"]["reason"] == "no_app"
    early = shop("result", waiting.id)
    assert early.code == 5
    assert "`semtask result -w` waits for its end" in early.err
    assert shop("cancel", waiting.id).code == 0
    assert shop("result", waiting.id).code == 143


def test_a_task_is_known_right_after_the_start_of_the_daemon(shell: Shell) -> None:
    """Its app is still being imported then."""
    project = write_app(shell.home.parent / "project", code="import time\ntime.sleep(1)\n" + CODE)
    assert shell("apps", "add", "shop", cwd=project).code == 0
    enqueued = shell("enqueue", "add", "-a", "a=1")
    assert "no app offers" not in enqueued.err
    assert shell.job(enqueued.id)["queue"] == "math"


def test_a_failure_exits_as_run_would_and_tells_the_exception(shop: Shell) -> None:
    job_id = shop("enqueue", "fail", "-a", "message=out of stock").id
    failed = shop("result", "-w", job_id)
    assert (failed.code, failed.out) == (1, "")
    assert failed.err.count("\n") == 1
    assert "failed (exception): ValueError: out of stock" in failed.err
    assert "raise ValueError(message)" in shop("result", job_id, "--traceback").err
    as_json = shop("result", job_id, "--json")
    assert (as_json.code, as_json.json["exception"]["type"]) == (1, "ValueError")
    shown = shop("show", job_id).out
    assert "raise ValueError(message)" in shown
    assert shown.endswith("ValueError: out of stock\n")


def test_a_large_result_is_printed_from_its_file(shop: Shell) -> None:
    job_id = shop("enqueue", "big", "-a", "size=400000").id
    result = shop("result", "-w", job_id)
    assert result.json == "x" * 400_000
    assert "prints it" in shop("show", job_id).out
    (artifact,) = shop("artifacts", "ls", job_id, "--json").json_lines
    assert artifact["is_result"]
    Path(artifact["path"]).write_text('"y"')
    damaged = shop("result", job_id)
    assert damaged.code == 1
    assert "its checksum is another one" in damaged.err
    Path(artifact["path"]).unlink()
    gone = shop("result", job_id)
    assert gone.code == 1
    assert "cannot read the artifact" in gone.err


def test_artifacts_and_progress(shop: Shell, tmp_path: Path) -> None:
    job_id = shop("enqueue", "report", "-a", "text=\x1b[31mred\n").id
    assert shop("wait", job_id).code == 0
    listed = [line.split("\t") for line in shop("artifacts", "ls", job_id).out.splitlines()]
    assert [line[0] for line in listed] == ["report.txt", "other.txt"]
    assert listed[1][1:3] == ["5", hashlib.sha256(b"other").hexdigest()]
    assert shop("artifacts", "get", job_id, "report.txt").out == "\x1b[31mred\n"
    target = tmp_path / "copy"
    assert shop("artifacts", "get", job_id, "other.txt", "-o", str(target)).code == 0
    assert target.read_bytes() == b"other"
    several = shop("artifacts", "get", job_id)
    assert (several.code, "name one of report.txt, other.txt" in several.err) == (2, True)
    missing = shop("artifacts", "get", job_id, "no.txt")
    assert missing.code == 4
    assert f"`semtask artifacts ls {job_id}` lists them" in missing.err
    code, text = shop.on_terminal("artifacts", "get", job_id, "report.txt")
    assert (code, "\x1b[31m" in text) == (2, False)
    shown = shop("show", job_id).out
    assert "progress       3 of 12 (25 %): writing" in shown
    assert "artifact       report.txt, 9 B, " in shown


def test_a_result_on_a_terminal_cannot_steer_it(shop: Shell) -> None:
    job_id = shop("enqueue", "greet", "-a", "name=\x9b31m").id
    assert shop("wait", job_id).code == 0
    code, text = shop.on_terminal("result", job_id)
    assert (code, text) == (0, '"hello \\x9b31m"\n')
    assert json.loads(shop("result", job_id).out) == "hello \x9b31m"


def test_lists_on_a_terminal_have_headers(shop: Shell) -> None:
    for command, header in (("apps", "APP"), ("tasks", "TASK"), ("workers", "WORKER")):
        code, text = shop.on_terminal(command)
        assert (code, text.startswith(header)) == (0, True), text


def test_whoever_waits_for_a_job_that_nobody_can_run_is_told_why(shop: Shell) -> None:
    job_id = shop("enqueue", "nobody:offers", "-q").out.strip()
    waited = shop("wait", "--timeout", "2500ms", job_id)
    assert waited.code == 124
    assert "waits: no app offers the task 'nobody:offers'" in waited.err
