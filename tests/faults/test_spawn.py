"""No process can be made, or no descriptor be had. That is no job's failure: what was claimed is given back."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from semtask.protocol.methods import METHODS
from tests.daemon.rig import Daemon, Json, command_params, eventually, running_daemon, stop_for_certain
from tests.powercut.load import RecordedDaemon, add_app

WHO = ["launcher:EAGAIN", "launcher:ENOMEM", "shim:EAGAIN", "shim:ENOMEM"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RecordedDaemon]:
    add_app(tmp_path / "home")
    daemon = RecordedDaemon(tmp_path / "home")
    try:
        yield daemon.start()
    finally:
        stop_for_certain(daemon)


def given_back(daemon: Daemon, job_id: str) -> Json:
    """The job once it was claimed in vain and waits for room."""

    def waits() -> Json | None:
        job = daemon.job(job_id)
        waiting = job["waiting"] or {}
        return job if job["claim_no"] and waiting.get("reason") == "machine_full" else None

    return dict(eventually(waits, what=f"{daemon.job(job_id)} is given back"))


@pytest.mark.parametrize("ill", WHO)
def test_a_command_that_cannot_be_forked_is_given_back_and_runs_later(daemon: RecordedDaemon, ill: str) -> None:
    daemon.wait(daemon.command("true"))
    daemon.suffer(ill)
    job_id = daemon.command("true", max_attempts=3)
    job = given_back(daemon, job_id)
    assert (job["state"], job["attempts"], job["failures"], job["crashes"]) == ("QUEUED", 0, 0, 0)
    daemon.suffer()
    [job] = daemon.wait(job_id)
    assert (job["state"], job["attempts"], job["failures"], job["crashes"]) == ("DONE", 1, 0, 0)
    assert job["claim_no"] > 1


@pytest.mark.parametrize("ill", WHO[::3])
def test_a_task_whose_worker_cannot_be_forked_runs_later(daemon: RecordedDaemon, ill: str) -> None:
    apps = eventually(lambda: [app for app in daemon.rpc("apps.list.v1")["apps"] if app["state"] == "ready"])
    assert [app["name"] for app in apps] == ["work"]
    for worker in daemon.rpc("workers.list.v1")["workers"]:
        os.kill(worker["pid"], 9)
    daemon.suffer(ill)
    eventually(lambda: not daemon.rpc("workers.list.v1")["workers"], what="the workers are gone")
    task = {"job_type": "add", "execution_mode": "IN_PROCESS", "payload": {"a": 2, "b": 3}}
    job_id = daemon.rpc("dev.enqueue.v1", **task)["job_id"]
    eventually(lambda: "did not start" in daemon.stderr())
    job = daemon.job(job_id)
    assert (job["state"], job["attempts"]) == ("QUEUED", 0)
    assert job["waiting"]["text"]
    daemon.suffer()
    [job] = daemon.wait(job_id, timeout_ms=60_000)
    assert (job["state"], job["attempts"], job["failures"], job["crashes"]) == ("DONE", 1, 0, 0)


def test_a_daemon_without_descriptors_goes_on_and_recovers(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        daemon.wait(daemon.command("true"))
        gate = tmp_path / "gate"
        running = daemon.command("sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.05; done; exit 3", queue="busy")
        eventually(lambda: daemon.job(running)["pid"])
        before = take_descriptors(daemon.pid)
        for method in ["GET", "POST"] * 10:
            status, retry_after, body = ask(daemon, method)
            assert (status, retry_after) == (503, "1")
            assert (body["error"]["code"], body["error"]["data"]["retry_after_ms"]) == (4003, 1000)
            assert "descriptor" in body["error"]["message"]
        mute = daemon.connection(timeout=30)
        mute.connect()  # and says nothing: others are answered all the same
        assert ask(daemon, "GET")[0] == 503
        mute.close()
        assert daemon.stderr().count("connections are refused") == 1
        assert "claiming pauses" in daemon.stderr()
        assert len(daemon.stderr().splitlines()) < 30
        gate.touch()
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
        eventually(lambda: daemon.get("/healthz")[0] == 200, what="connections are taken in again")
        [job] = daemon.wait(running)
        assert (job["state"], job["exit_code"], job["attempts"]) == ("FAILED", 3, 1)
        assert daemon.wait(daemon.command("true"))[0]["state"] == "DONE"


@pytest.fixture
def plain_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Without our layer below SQLite, which opens files of its own."""
    with running_daemon(tmp_path / "home") as daemon:
        yield daemon


def test_what_needs_a_descriptor_can_be_asked_for_again(plain_daemon: Daemon, tmp_path: Path) -> None:
    """Every method of the API works, or says 4003; and works again when there are descriptors."""
    daemon = plain_daemon
    job_id = daemon.command("echo", "said")
    daemon.wait(job_id)
    job = {"job_id": job_id}
    wrong_setting = {"SEMANTICA_QUEUE_CONCURRENCY": "none"}  # this other daemon ends with a message
    requests: dict[str, list[Json]] = {
        "logs.tail.v1": [{**job, "offset": 0}, {**job, "lines": 3}],
        "apps.reload.v1": [{}],
        "apps.list.v1": [{}],
        "tasks.list.v1": [{}],
        "workers.list.v1": [{}],
        "queues.list.v1": [{}],
        "queues.pause.v1": [{"queue": "q"}],
        "queues.configure.v1": [{"queue": "q", "concurrency": 2}],
        "queues.resume.v1": [{"queue": "q"}],
        "admin.stats.v1": [{}],
        "admin.maintenance.v1": [{}, {"force_vacuum": True}],
        "admin.start_daemon.v1": [{"env": {**os.environ, "SEMANTICA_HOME": str(tmp_path / "other"), **wrong_setting}}],
        "dev.get_job.v1": [{**job, "include": ["payload", "result", "attempts"]}],
        "dev.query_jobs.v1": [{}],
        "dev.wait.v1": [{"job_ids": [job_id], "timeout_ms": 0}],
        "dev.cancel.v1": [job],
        "dev.retry.v1": [job],
        "dev.enqueue.v1": [command_params("true")],
        "dev.enqueue_many.v1": [{"jobs": [command_params("true")]}],
    }
    assert set(requests) == set(METHODS) - {"rpc.discover"}
    connection = daemon.connection(timeout=30)

    def code_of(method: str, params: Json) -> int | None:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        connection.request("POST", "/rpc", body, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        return answer["error"]["code"] if "error" in answer else None

    every = [(method, params) for method, several in requests.items() for params in several]
    try:
        works = [code_of(*one) for one in every]
        before = take_descriptors(daemon.pid)
        codes = [code_of(*one) for one in every]
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
        assert codes[:3] == [4003] * 3
        wrong = [(*one, was, is_) for one, was, is_ in zip(every, works, codes, strict=True) if is_ not in {was, 4003}]
        assert wrong == []
        assert [code_of(*one) for one in every] == works
    finally:
        connection.close()


def ask(daemon: Daemon, method: str) -> tuple[int, str | None, Json]:
    connection = daemon.connection(timeout=30)
    try:
        connection.request(method, "/rpc", "{}" if method == "POST" else None)
        response = connection.getresponse()
        return response.status, response.getheader("retry-after"), json.loads(response.read())
    finally:
        connection.close()


def take_descriptors(pid: int) -> tuple[int, int]:
    used = {int(number) for number in os.listdir(f"/proc/{pid}/fd")}
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    first_free = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, before[1]))
    return before
