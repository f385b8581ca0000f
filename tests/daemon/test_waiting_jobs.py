"""Jobs that wait for other jobs: they leave their places to them, by whatever way they wait."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.rig import Daemon, Json, eventually, running_daemon

SEMTASK = f"{sys.executable} -m semtask"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One job of a queue at a time, and one process."""
    home = tmp_path_factory.mktemp("waiting") / "home"
    with running_daemon(home, SEMANTICA_MAX_PROCESSES="1", SEMANTICA_QUEUE_CONCURRENCY="1") as running:
        yield running


def shell(daemon: Daemon, script: str, **options: Any) -> str:
    return daemon.command("sh", "-c", script, **options)


def python(daemon: Daemon, script: str, **options: Any) -> str:
    return daemon.command(sys.executable, "-c", script, **options)


def running(daemon: Daemon, job_id: str) -> Json:
    job: Json = eventually(lambda: (job := daemon.job(job_id))["state"] == "RUNNING" and job, what=f"{job_id} runs")
    return job


WAYS = {
    "run": f"{SEMTASK} run -- echo child",
    "three deep": f"{SEMTASK} run -- {SEMTASK} run -- {SEMTASK} run -- echo child",
    "wait": f"id=$({SEMTASK} run -dq -- true) && {SEMTASK} wait $id && echo child",
    "logs -f": f"id=$({SEMTASK} run -dq -- echo child) && {SEMTASK} logs -f $id",
    "another session": f"setsid -w {SEMTASK} run -- echo child",
    "cleared": "env -i SEMANTICA_HOME=$SEMANTICA_HOME " + f"{SEMTASK} run -- echo child",
    "cleared, the command itself": "exec env -i SEMANTICA_HOME=$SEMANTICA_HOME " + f"{SEMTASK} run -- echo child",
    "result -w": f"id=$({SEMTASK} run -dq -- true) && {SEMTASK} result -w $id; echo child",
}

SCRIPTS = {
    "handle": "import semtask; print('child', semtask.Semantica().run('true').result(60).exit_code)",
    "follow": "import semtask; print(*semtask.Semantica().run('echo', 'child').logs(follow=True))",
    "client": (
        "from semtask.client.client import Client\n"
        "with Client() as client:\n"
        "    job = client.enqueue('c', {'command': 'true'}, execution_mode='SUBPROCESS')\n"
        "    print(client.wait([job.job_id], timeout_ms=60000).timed_out or 'child')"
    ),
    "asyncio": (
        "import asyncio, semtask\n"
        "app = semtask.Semantica()\n"
        "async def main():\n"
        "    handles = [await app.arun('true') for _ in range(3)]\n"
        "    print('child', *await asyncio.gather(*handles))\n"
        "asyncio.run(main())"
    ),
}


def test_a_command_that_waits_for_jobs_of_its_own_queue_leaves_its_place_to_them(narrow: Daemon) -> None:
    jobs = {way: shell(narrow, script) for way, script in WAYS.items()}
    jobs |= {way: python(narrow, script) for way, script in SCRIPTS.items()}
    for way, job_id in jobs.items():
        [job] = narrow.wait(job_id, timeout_ms=60_000)
        assert (job["state"], "child" in narrow.log(job_id)) == ("DONE", True), (way, narrow.log(job_id))


TASKS = """
import asyncio, os, subprocess, sys, threading
from semtask import Semantica, current_job
from semtask.client.client import Client
app = Semantica()
ASK = [sys.executable, "-m", "semtask", "run", "--", "echo", "child"]

@app.task(concurrency=1)
def child() -> str:
    return "child"

@app.task(concurrency=1)
def calls_the_command_line() -> str:
    return subprocess.run(ASK, capture_output=True, text=True, check=True).stdout

@app.task(concurrency=1)
def calls_it_with_a_cleared_environment() -> str:
    env = {"SEMANTICA_HOME": os.environ["SEMANTICA_HOME"]}
    return subprocess.run(ASK, capture_output=True, text=True, check=True, env=env).stdout

@app.task(concurrency=1)
def uses_a_client() -> str:
    with Client() as client:
        job = client.enqueue("c", {"command": "true"}, execution_mode="SUBPROCESS")
        return "late" if client.wait([job.job_id], timeout_ms=60_000).timed_out else "child"

@app.task(concurrency=1)
def waits_in_a_thread() -> str:
    found = []
    thread = threading.Thread(target=lambda: found.append(child.enqueue().result(60)))
    thread.start()
    thread.join()
    return found[0]

@app.task(concurrency=1)
def follows() -> str:
    return " ".join(app.run("echo", "child").logs(follow=True))

@app.task
async def holds(gate: str) -> None:
    while not os.path.exists(gate):
        await asyncio.sleep(0.05)

@app.task
async def follows_async() -> str:
    job = await app.arun("sh", "-c", "sleep 0.1; echo child")
    return " ".join([line async for line in job.alogs(follow=True)])

@app.task
async def calls_async() -> str:
    env = {**os.environ, "SEMANTICA_JOB_ID": current_job().job_id}
    process = await asyncio.create_subprocess_exec(*ASK, env=env, stdout=subprocess.PIPE)
    return (await process.communicate())[0].decode()
"""


def test_so_does_a_task_by_whatever_way_it_waits(narrow: Daemon, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    app = {"module": "tasks:app", "directory": str(tmp_path), "python": sys.executable}
    file = narrow.home / "apps.json"
    file.write_text(json.dumps({"apps": {"waiting": app}}))
    file.chmod(0o600)
    [imported] = narrow.rpc("apps.reload.v1", wait_ms=30_000)["apps"]
    assert imported["state"] == "ready", imported

    def enqueue(task: str, **options: Any) -> str:
        params = {"job_type": f"tasks:{task}", "execution_mode": "IN_PROCESS", "payload": {}, **options}
        return str(narrow.rpc("dev.enqueue.v1", **params)["job_id"])

    # Another async job in the same worker, so that the worker alone does not say which one it is that waits.
    other = enqueue("holds", queue="other", payload={"gate": str(tmp_path / "gate")})
    running(narrow, other)
    ways = ["calls_the_command_line", "calls_it_with_a_cleared_environment", "uses_a_client", "waits_in_a_thread"]
    ways += ["follows", "follows_async", "calls_async"]
    for way in ways:
        job_id = enqueue(way)
        [job] = narrow.wait(job_id, timeout_ms=60_000)
        assert (job["state"], narrow.job(job_id, "result")["result"] or "") != ("DONE", ""), (way, job["error"])
        assert narrow.job(job_id, "result")["result"].strip() == "child", way
    (tmp_path / "gate").touch()
    narrow.wait(other)
    file.write_text(json.dumps({"apps": {}}))
    narrow.rpc("apps.reload.v1", wait_ms=30_000)


def test_it_counts_again_when_the_wait_is_over_or_given_up(narrow: Daemon, tmp_path: Path) -> None:
    """One waits twice at the same time. The end of one of the waits, by the death of its process, changes nothing."""
    gate = tmp_path / "gate"
    child = f"sh -c 'until [ -e {gate} ]; do sleep 0.05; done'"
    script = f"""
        id=$({SEMTASK} run -dq -- {child}) || exit 1
        {SEMTASK} wait $id & one=$!
        {SEMTASK} wait $id & two=$!
        until [ -e {tmp_path}/first ]; do sleep 0.05; done; kill -9 $one
        until [ -e {tmp_path}/second ]; do sleep 0.05; done; kill -9 $two
        until [ -e {tmp_path}/third ]; do sleep 0.05; done
    """
    parent = shell(narrow, script)

    def processes() -> int:
        return int(narrow.stats()["system"]["running_processes"])

    def waits() -> Any:
        return (narrow.job(parent)["waiting"] or {}).get("reason")

    eventually(lambda: narrow.stats()["running_jobs"] == 2, what="the child runs")
    assert (processes(), waits()) == (1, "other_job")
    (tmp_path / "first").touch()
    later = shell(narrow, "true")
    # Parent and child run, and the parent counts again when nothing of it waits any more: above the limit.
    (tmp_path / "second").touch()
    eventually(lambda: (processes(), waits()) == (2, None), what="the parent counts again")
    gate.touch()
    eventually(lambda: narrow.stats()["running_jobs"] == 1, what="the child has ended")
    assert narrow.job(later)["waiting"]["reason"] in {"queue_full", "machine_full"}
    (tmp_path / "third").touch()
    assert {job["state"] for job in narrow.wait(parent, later)} == {"DONE"}


def ask(daemon: Daemon, attempt: str, **params: Any) -> contextlib.AbstractContextManager[Any]:
    """A wait that is under way, of a client that says it is this attempt."""
    connection = daemon.connection()
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "dev.wait.v1", "params": {"timeout_ms": 60_000, **params}})
    headers = {"content-type": "application/json", "semtask-attempt": attempt}
    connection.request("POST", "/rpc", body, headers)
    return contextlib.closing(connection)


def test_only_the_attempt_that_runs_can_say_that_it_waits(narrow: Daemon, tmp_path: Path) -> None:
    parent = shell(narrow, f"echo $SEMANTICA_ATTEMPT; until [ -e {tmp_path}/gate ]; do sleep 0.05; done")
    running(narrow, parent)
    attempt = eventually(lambda: narrow.log(parent).strip(), what="it says which attempt it is")
    child = shell(narrow, "true")
    nonce = attempt.rpartition(".")[0]
    wrong = [
        f"{nonce}.{'0' * 16}",
        parent,
        f"{parent}.1",
        f"{parent}.99999999999999.x",
        "worker",
        "\xff",
        f"{parent}.\xb2.x",
    ]
    with contextlib.ExitStack() as open_waits:
        for other in wrong:
            open_waits.enter_context(ask(narrow, other, job_ids=[child]))
        # Asked after them, and answered: by then they have been taken in.
        assert narrow.rpc("dev.wait.v1", job_ids=[child], timeout_ms=300)["timed_out"]
        assert narrow.job(child)["state"] == "QUEUED"
        assert narrow.job(parent)["waiting"] is None
    with ask(narrow, attempt, job_ids=[child]):
        assert narrow.wait(child)[0]["state"] == "DONE"
    (tmp_path / "gate").touch()
    narrow.wait(parent)


def test_a_circle_is_named(narrow: Daemon) -> None:
    """By `show`, and to whoever waits."""
    itself = shell(narrow, f"{SEMTASK} wait $SEMANTICA_JOB_ID", queue="a")
    lane = shell(narrow, f"{SEMTASK} run --queue b --subject s --name t -- true", queue="b", subject_key="s")

    def circle(job_id: str) -> Any:
        waiting = narrow.job(job_id)["waiting"]
        return waiting and waiting["reason"] == "deadlock" and waiting["text"]

    assert "waits for its own end" in eventually(lambda: circle(itself), what="it waits for itself")
    eventually(lambda: "waits for its own end" in narrow.log(itself), what="the command line says so")
    del lane
    narrow.rpc("dev.cancel.v1", job_id=itself)
    narrow.wait(itself)


def test_two_jobs_that_wait_for_each_other_and_one_that_holds_the_subject(narrow: Daemon, tmp_path: Path) -> None:
    names = tmp_path / "second"
    one = shell(narrow, f"until [ -s {names} ]; do sleep 0.05; done; {SEMTASK} wait $(cat {names})", queue="c")
    running(narrow, one)
    two = narrow.rpc(
        "dev.enqueue.v1",
        job_type="t",
        execution_mode="SUBPROCESS",
        queue="d",
        payload={"command": "sh", "args": ["-c", f"{SEMTASK} wait {one}"]},
    )["job_id"]
    names.write_text(two)

    def text(job_id: str) -> Any:
        waiting = narrow.job(job_id)["waiting"]
        return waiting and waiting["reason"] == "deadlock" and waiting["text"]

    assert eventually(lambda: text(one)).startswith(f"it waits for job {two}, which waits for it;")
    assert eventually(lambda: text(two)).startswith(f"it waits for job {one}, which waits for it;")
    narrow.rpc("dev.cancel.v1", job_id=two)
    narrow.wait(one, two)

    holder = narrow.rpc(
        "dev.enqueue.v1",
        job_type="lane",
        execution_mode="SUBPROCESS",
        subject_key="s",
        payload={"command": "sh", "args": ["-c", f"cat {tmp_path}/fifo | xargs {SEMTASK} wait"]},
    )["job_id"]
    os.mkfifo(tmp_path / "fifo")
    running(narrow, holder)
    behind = narrow.rpc(
        "dev.enqueue.v1",
        job_type="lane",
        execution_mode="SUBPROCESS",
        subject_key="s",
        on_duplicate="after",
        payload={"command": "true"},
    )["job_id"]
    (tmp_path / "fifo").write_text(behind)
    said = eventually(lambda: text(behind), what="the one behind its own waiter")
    assert f"job {holder} of the same subject 's' runs; it waits for job {holder}, which waits for it" in said
    assert eventually(lambda: text(holder)).startswith(f"it waits for job {behind}, which waits for it")
    eventually(lambda: "none of them can go on" in narrow.log(holder), what="the one that waits is told")
    narrow.rpc("dev.cancel.v1", job_id=holder)
    assert [job["state"] for job in narrow.wait(holder, behind)] == ["CANCELLED", "DONE"]


def test_after_a_restart_it_waits_anew(narrow: Daemon, tmp_path: Path) -> None:
    """The attempt of the former daemon counts no less than it should, and the next one leaves its place again."""
    gate = tmp_path / "gate"
    child = f"{SEMTASK} run -- sh -c 'until [ -e {gate} ]; do sleep 0.05; done; echo child'"
    parent = shell(narrow, child, on_interrupt="requeue", queue="again")
    eventually(lambda: narrow.stats()["running_jobs"] == 2, what="both run")
    narrow.kill()
    narrow.start()
    eventually(lambda: narrow.job(parent)["claim_no"] == 2 and narrow.stats()["running_jobs"] == 2, what="both run")
    assert narrow.stats()["system"]["running_processes"] == 1
    gate.touch()
    [job] = narrow.wait(parent)
    assert (job["state"], narrow.log(parent).splitlines()[0]) == ("DONE", "child")
