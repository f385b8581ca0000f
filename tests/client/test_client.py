"""Client against the table of methods, and against a real daemon."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import semtask
from semtask import errors
from semtask.client.client import Client
from semtask.model.job import ExecutionMode
from semtask.model.state import State
from semtask.protocol.messages import METHODS, EnqueueParams, QueryFilter, Schedule, TailParams
from tests.cli.rig import Shell, alive, eventually, kill

CALLS = {
    "dev.enqueue.v1": ["enqueue"],
    "dev.enqueue_many.v1": ["enqueue_many"],
    "dev.get_job.v1": ["get_job"],
    "dev.query_jobs.v1": ["query_jobs"],
    "dev.wait.v1": ["wait"],
    "dev.cancel.v1": ["cancel"],
    "logs.tail.v1": ["tail_lines", "read_log"],
    "queues.list.v1": ["list_queues"],
    "queues.pause.v1": ["pause_queue"],
    "queues.resume.v1": ["resume_queue"],
    "queues.configure.v1": ["configure_queue"],
    "admin.stats.v1": ["stats"],
    "rpc.discover": ["discover"],
}


def parameters(name: str) -> dict[str, Any]:
    found = dict(inspect.signature(getattr(Client, name)).parameters)
    del found["self"]
    return {key: value.default for key, value in found.items()}


def test_every_method_of_the_api_has_one_of_the_client() -> None:
    assert set(CALLS) == set(METHODS)
    public = {n for n, f in inspect.getmembers(Client, inspect.isfunction) if not n.startswith("_")} - {"close"}
    assert public == {name for names in CALLS.values() for name in names}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_served_parameter_can_be_given(method: str) -> None:
    fields = {f.encode_name: f.default for f in msgspec.structs.fields(METHODS[method].params)}
    if method == "dev.query_jobs.v1":
        del fields["filter"]
        fields |= {f.encode_name: f.default for f in msgspec.structs.fields(QueryFilter)}
    unserved = {name.split(".")[-1] for name in METHODS[method].unserved}
    given: dict[str, Any] = {}
    for name in CALLS[method]:
        given |= parameters(name)
    assert set(given) == set(fields) - unserved


def test_defaults_are_those_of_the_api() -> None:
    fields = {f.name: f.default for f in msgspec.structs.fields(EnqueueParams)}
    given = parameters("enqueue")
    for name in set(given) - {"job_type", "payload"}:
        assert given[name] == fields[name]
    tail = {f.name: f.default for f in msgspec.structs.fields(TailParams)}
    assert parameters("read_log")["limit"] == tail["limit"]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    running = Shell(tmp_path_factory.mktemp("client") / "home", SEMANTICA_MAX_PROCESSES="8")
    assert running("up").code == 0
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(shell: Shell) -> Iterator[Client]:
    with Client(home=shell.home, notice=pytest.fail) as connected:
        yield connected


def command(*argv: str, **more: Any) -> dict[str, Any]:
    return {"command": argv[0], "args": list(argv[1:]), **more}


def test_a_job_from_beginning_to_end(client: Client) -> None:
    payload = command("sh", "-c", "echo out; echo err >&2; exit 3", stderr="split")
    accepted = client.enqueue(
        "c", payload, tag="whole", execution_mode=ExecutionMode.SUBPROCESS, idempotency_key="once"
    )
    assert client.enqueue("c", payload, execution_mode=ExecutionMode.SUBPROCESS, idempotency_key="once").deduplicated
    waited = client.wait([accepted.job_id])
    assert not waited.timed_out
    (job,) = waited.jobs
    assert (job.state, job.exit_code, job.tag) == (State.FAILED, 3, "whole")
    assert client.tail_lines(accepted.job_id).lines == ["out"]
    chunk = client.read_log(accepted.job_id, stream="stderr", wait_ms=1000)
    assert (chunk.chunk, chunk.eof, chunk.next_offset) == ("err\n", True, 4)
    whole = client.get_job(accepted.job_id, include=["payload", "attempts"])
    assert whole.payload == payload
    assert whole.attempts_list is not None
    assert [a.exit_code for a in whole.attempts_list] == [3]
    with pytest.raises(errors.Conflict):
        client.cancel(accepted.job_id)


def test_many_jobs_and_their_pages(client: Client) -> None:
    jobs = client.enqueue_many(
        [
            EnqueueParams(job_type="m", payload=msgspec.Raw(b'{"command":"true"}'), tag="many"),
            {"job_type": "m", "payload": command("true"), "tag": "many"},
            {
                "job_type": "m",
                "payload": command("true"),
                "tag": "many",
                "schedule": Schedule(type="AFTER", delay_ms=3_600_000),
            },
        ]
    )
    assert [j.state for j in jobs][2] is State.SCHEDULED
    first = client.query_jobs(tag="many", limit=2, sort="oldest")
    assert [j.job_id for j in first.items] == [j.job_id for j in jobs[:2]]
    assert first.next_cursor is not None
    rest = client.query_jobs(tag="many", limit=2, sort="oldest", cursor=first.next_cursor)
    assert [j.job_id for j in rest.items] == [jobs[2].job_id]
    assert client.query_jobs(tag="many", state=[State.SCHEDULED]).items[0].job_id == jobs[2].job_id
    assert client.cancel(tag="many").cancelled


def test_queues(client: Client) -> None:
    assert client.pause_queue("client").paused
    assert client.configure_queue("client", concurrency=3).concurrency == 3
    job = client.enqueue("q", command("true"), queue="client")
    waiting = client.wait([job.job_id], timeout_ms=50)
    assert waiting.timed_out
    assert waiting.jobs[0].waiting is not None
    assert waiting.jobs[0].waiting.reason == "queue_paused"
    assert not client.resume_queue("client").paused
    assert client.wait([job.job_id]).jobs[0].state is State.DONE
    assert {q.name: q.done for q in client.list_queues()}["client"] == 1
    assert client.configure_queue("client", concurrency=None).concurrency != 3


def test_stats_and_the_api_document(client: Client, shell: Shell) -> None:
    assert client.stats().pid == shell.daemon_pid()
    assert {m["name"] for m in client.discover()["methods"]} == set(METHODS)


def test_errors_are_the_servers_classes(client: Client) -> None:
    with pytest.raises(errors.NotFound):
        client.get_job("01a207a1-0000-7000-8000-000000000000")
    with pytest.raises(errors.ValidationError, match="queue"):
        client.enqueue("x", {}, queue="no spaces")
    with pytest.raises(errors.ValidationError, match="JSON"):
        client.enqueue("x", object())
    with pytest.raises(errors.ValidationError, match="no job"):
        client.enqueue_many([{"job_type": "x", "payload": {}, "nonsense": 1}])
    client.enqueue("x", command("true"), idempotency_key="k")
    with pytest.raises(errors.Conflict):
        client.enqueue("x", command("false"), idempotency_key="k")


def test_no_daemon_and_none_wanted(tmp_path: Path) -> None:
    with (
        Client(home=tmp_path / "home", autostart=False) as client,
        pytest.raises(errors.DaemonUnavailable, match="semtask up"),
    ):
        client.stats()
    assert not (tmp_path / "home").exists()


def test_a_client_outlives_its_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts the next one, and leaves no zombie of the one before."""
    shell = Shell(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path))
    lines: list[str] = []
    try:
        with Client(home=shell.home, notice=lines.append) as client:
            first = client.stats().pid
            job = client.enqueue("x", command("true"))
            assert client.wait([job.job_id]).jobs[0].state is State.DONE
            kill(first)
            eventually(lambda: not os.path.exists(f"/proc/{first}"), what="the zombie is reaped")
            assert client.get_job(job.job_id).state is State.DONE
            second = client.stats().pid
        assert second != first
        assert alive(second)
        assert [line.split(" (")[0] for line in lines] == ["started the daemon"] * 2
    finally:
        shell.stop()


def test_the_client_is_public() -> None:
    assert semtask.Client is Client
