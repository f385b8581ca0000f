"""What becomes part of a stored job, what a key and a copy of it stand for, and what is refused before it is stored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon.rig import Daemon, RpcFailed, running_daemon
from tests.engine.test_admission import VALUES

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("admission") / "home") as running:
        yield running


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def request(payload: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Of a job that does not run meanwhile; `payload` and `options` replace what it has."""
    command = {"command": "true", "args": ["1"], "working_dir": "/", "env": {"A": "1"}, "umask": 18, **payload}
    later = {"type": "AFTER", "delay_ms": HOUR_MS}
    return {"job_type": "build", "execution_mode": "SUBPROCESS", "payload": command, "schedule": later, **options}


def refusal(daemon: Daemon, **params: Any) -> str:
    before = daemon.stats()["total_jobs"]
    with pytest.raises(RpcFailed) as caught:
        daemon.rpc("dev.enqueue.v1", **params)
    assert daemon.stats()["total_jobs"] == before
    assert caught.value.code == 4000
    return str(caught.value.message)


def test_what_a_key_stands_for_and_what_not(daemon: Daemon) -> None:
    first = daemon.rpc("dev.enqueue.v1", **request({}, idempotency_key="key"))
    content: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"job_type": "other"}),
        ({}, {"queue": "other"}),
        ({}, {"subject_key": "s"}),
        ({}, {"execution_mode": "IN_PROCESS"}),
        ({"command": "false"}, {}),
        ({"args": ["2"]}, {}),
        ({"working_dir": "/tmp"}, {}),
    ]
    for payload, options in content:
        with pytest.raises(RpcFailed) as caught:
            daemon.rpc("dev.enqueue.v1", **request(payload, **options, idempotency_key="key"))
        assert caught.value.code == 4002, (payload, options)
    others: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"env": {"A": "2"}}, {}),
        ({"umask": 63}, {}),
        ({}, {"priority": 5, "tag": "t", "max_attempts": 3, "timeout_ms": 5000, "ttl_ms": HOUR_MS}),
        ({}, {"schedule": {"type": "AFTER", "delay_ms": 2 * HOUR_MS}, "deadline": now_ms() + 9 * HOUR_MS}),
        ({}, {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}),
    ]
    for payload, options in others:
        again = daemon.rpc("dev.enqueue.v1", **request(payload, **options, idempotency_key="key"))
        assert (again["job_id"], again["deduplicated"]) == (first["job_id"], True), (payload, options)
    stored = daemon.job(first["job_id"])
    assert (stored["priority"], stored["tag"], stored["max_attempts"]) == (0, None, 1)


def test_every_option_is_stored_shown_and_copied_by_a_retry(daemon: Daemon) -> None:
    """A job with a value of each option, of a task that nobody offers: it waits until it is cancelled."""
    options = {**VALUES, "payload": {"b": 2}, "deadline": now_ms() + HOUR_MS, "ttl_ms": HOUR_MS}
    job_id = daemon.rpc("dev.enqueue.v1", **options)["job_id"]
    shown = daemon.job(job_id, "payload")
    assert {name: shown[name] for name in options} == options
    daemon.rpc("dev.cancel.v1", job_id=job_id)
    copy = daemon.job(daemon.rpc("dev.retry.v1", job_id=job_id)["job_id"], "payload")
    anew = {"idempotency_key": None, "deadline": copy["created_at"] + options["deadline"] - shown["created_at"]}
    assert {name: copy[name] for name in options} == {**options, **anew}
    daemon.rpc("dev.cancel.v1", job_id=copy["job_id"])


def test_a_copy_of_a_finished_job_has_its_deadline_anew_and_supersedes_nobody(daemon: Daemon) -> None:
    deadline = now_ms() + HOUR_MS
    failed = daemon.command("false", subject_key="s", deadline=deadline)
    daemon.wait(failed)
    old = daemon.job(failed)
    daemon.rpc("queues.pause.v1", queue="default")
    waits = daemon.command("true", subject_key="s")
    copy = daemon.job(daemon.rpc("dev.retry.v1", job_id=failed)["job_id"])
    assert daemon.job(waits)["state"] == "QUEUED", "a retry by hand goes behind what waits for the same subject"
    assert copy["deadline"] - copy["created_at"] == old["deadline"] - old["created_at"]
    assert copy["deadline"] > old["deadline"]
    daemon.rpc("queues.resume.v1", queue="default")
    assert [job["state"] for job in daemon.wait(waits, copy["job_id"])] == ["DONE", "FAILED"]


@pytest.mark.parametrize("folder", ["", ".", "src", "./src", "../src", "~", "~/src"])
def test_a_relative_working_directory_is_refused(daemon: Daemon, folder: str) -> None:
    assert "must be an absolute path" in refusal(daemon, **request({"working_dir": folder}))


def test_a_deadline_that_comes_before_the_job_is_due_is_refused(daemon: Daemon) -> None:
    soon, later = now_ms() + HOUR_MS, now_ms() + 2 * HOUR_MS
    at = {"type": "AT", "scheduled_at": later}
    assert "could never run" in refusal(daemon, **request({}, schedule=at, deadline=soon))
    assert "could never run" in refusal(daemon, **request({}, schedule=at, deadline=later))
    assert "could never run" in refusal(daemon, **request({}, schedule={"type": "IMMEDIATE"}, deadline=now_ms() - 1))
    assert daemon.rpc("dev.enqueue.v1", **request({}, schedule=at, deadline=later + 1))["state"] == "SCHEDULED"
