"""No process can be made, or no descriptor be had. That is no job's failure: what was claimed is given back."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, Json, eventually, running_daemon, stop_for_certain
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


def test_a_log_that_cannot_be_opened_for_lack_of_descriptors_can_be_asked_for_again(daemon: Daemon) -> None:
    job_id = daemon.command("echo", "said")
    daemon.wait(job_id)
    connection = daemon.connection(timeout=30)
    params = {"job_id": job_id, "offset": 0}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "logs.tail.v1", "params": params})

    def tail() -> Json:
        connection.request("POST", "/rpc", body, {"content-type": "application/json"})
        return dict(json.loads(connection.getresponse().read()))

    try:
        assert tail()["result"]["chunk"] == "said\n"
        before = take_descriptors(daemon.pid)
        error = tail()["error"]
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
        assert (error["code"], error["data"]["retry_after_ms"]) == (4003, 200), error
        assert tail()["result"]["chunk"] == "said\n"
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
