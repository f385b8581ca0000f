"""Client against the table of methods, and against a real daemon."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import semtask
from semtask import errors
from semtask.client import calls
from semtask.client.async_client import AsyncClient
from semtask.client.client import Client
from semtask.client.http import READS
from semtask.model.job import ExecutionMode, OnDuplicate, QueueClass, Schedule
from semtask.model.state import State
from semtask.protocol.enqueue import EnqueueParams
from semtask.protocol.jobs import QueryFilter
from semtask.protocol.logs import TailParams
from semtask.protocol.methods import METHODS
from tests.cli.rig import Shell, alive, eventually, kill

ID = "01a207a1-0000-7000-8000-000000000000"
CALLS = {
    "dev.enqueue.v1": ["enqueue"],
    "dev.enqueue_many.v1": ["enqueue_many"],
    "dev.get_job.v1": ["get_job"],
    "dev.query_jobs.v1": ["query_jobs"],
    "dev.wait.v1": ["wait"],
    "dev.cancel.v1": ["cancel"],
    "dev.retry.v1": ["retry"],
    "logs.tail.v1": ["tail_lines", "read_log"],
    "apps.list.v1": ["list_apps"],
    "apps.reload.v1": ["reload_apps"],
    "tasks.list.v1": ["list_tasks"],
    "workers.list.v1": ["list_workers"],
    "queues.list.v1": ["list_queues"],
    "queues.pause.v1": ["pause_queue"],
    "queues.resume.v1": ["resume_queue"],
    "queues.configure.v1": ["configure_queue"],
    "admin.stats.v1": ["stats"],
    "admin.maintenance.v1": ["maintenance"],
    "admin.start_daemon.v1": ["start_daemon"],
    "rpc.discover": ["discover"],
}


def parameters(name: str, kind: type[Client | AsyncClient] = Client) -> dict[str, Any]:
    found = dict(inspect.signature(getattr(kind, name)).parameters)
    del found["self"]
    return {key: value.default for key, value in found.items()}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_method_of_the_api_has_one_of_the_client(kind: type[Client | AsyncClient]) -> None:
    assert set(CALLS) == set(METHODS)
    public = {n for n, f in inspect.getmembers(kind, inspect.isfunction) if not n.startswith("_")} - {"close", "send"}
    assert public == {name for names in CALLS.values() for name in names}
    assert all((getattr(kind, name).__doc__ or "").strip() for name in public)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_served_parameter_can_be_given(method: str) -> None:
    fields = {f.name: f.default for f in msgspec.structs.fields(METHODS[method].params)}
    if method == "dev.query_jobs.v1":
        del fields["filter"]
        fields |= {f.name: f.default for f in msgspec.structs.fields(QueryFilter)}
    given: dict[str, Any] = {}
    for name in CALLS[method]:
        given |= parameters(name)
    assert set(given) == set(fields)


@pytest.mark.parametrize("name", sorted(name for names in CALLS.values() for name in names))
def test_both_clients_take_the_same(name: str) -> None:
    assert parameters(name, AsyncClient) == parameters(name, Client)
    assert inspect.signature(getattr(AsyncClient, name)) == inspect.signature(getattr(Client, name))
    assert inspect.iscoroutinefunction(getattr(AsyncClient, name))


def test_an_instance_shows_its_methods_without_self() -> None:
    signature = inspect.signature(Client(home="/nowhere").wait)
    assert list(signature.parameters) == ["job_ids", "mode", "timeout_ms", "include"]
    assert signature.return_annotation == "Waited"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_each_call_asks_its_method_and_reads_its_result(method: str) -> None:
    required: dict[str, Any] = {"job_type": "x", "payload": {}, "job_id": ID, "job_ids": [ID], "jobs": [], "queue": "q"}
    required["env"] = {}
    for name in CALLS[method]:
        function = getattr(calls, name)
        wanted = {k for k, p in inspect.signature(function).parameters.items() if p.default is p.empty}
        call = function(**{k: required[k] for k in wanted})
        assert call.method == method
        assert type(call.params) is METHODS[method].params
        assert call.repeatable == (method in READS or name == "enqueue_many")  # of no jobs: nothing can happen twice


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
    again = client.cancel(accepted.job_id)
    assert (again.cancelled, again.ended_as) == (False, State.FAILED)


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
    assert client.configure_queue("client", class_=QueueClass.BACKGROUND).class_ is QueueClass.BACKGROUND
    assert client.configure_queue("client", class_=QueueClass.NORMAL).class_ is QueueClass.NORMAL


def test_policies_reach_the_job(client: Client) -> None:
    deadline = round(time.time() * 1000) + 3_600_000
    accepted = client.enqueue(
        "p",
        command("false"),
        subject_key="policies",
        on_duplicate=OnDuplicate.AFTER,
        max_attempts=2,
        backoff_factor=3.0,
        retry_base_delay_ms=10,
        retry_max_delay_ms=20,
        retry_on_crash=True,
        timeout_ms=5000,
        deadline=deadline,
        ttl_ms=60_000,
    )
    (job,) = client.wait([accepted.job_id]).jobs
    assert (job.subject_key, job.max_attempts, job.attempts, job.failures) == ("policies", 2, 2, 2)
    assert (job.backoff_factor, job.retry_base_delay_ms, job.retry_max_delay_ms) == (3.0, 10, 20)
    assert (job.retry_on_crash, job.timeout_ms, job.deadline, job.ttl_ms) == (True, 5000, deadline, 60_000)
    assert [j.job_id for j in client.query_jobs(subject_key_prefix="polic").items] == [job.job_id]


def test_a_failed_job_is_retried_as_a_copy(client: Client) -> None:
    failed = client.enqueue("r", command("false"), tag="again").job_id
    client.wait([failed])
    one = client.retry(failed)
    assert (one.retried_count, one.retry_of) == (1, failed)
    assert one.job_id is not None
    client.wait([one.job_id])
    assert client.get_job(one.job_id).retry_of == failed
    rest = client.retry(tag="again")
    assert [job.retry_of for job in rest.jobs] == [one.job_id]  # the first one was retried already
    assert not rest.more


def test_maintenance(client: Client) -> None:
    done = client.maintenance(force_vacuum=True)
    assert done.jobs_deleted == 0  # all of them are young
    assert done.db_size_before >= done.db_size_after > 0


def test_stats_and_the_api_document(client: Client, shell: Shell) -> None:
    assert client.stats().pid == shell.daemon_pid()
    assert {m["name"] for m in client.discover()["methods"]} == set(METHODS)


def test_errors_are_the_servers_classes(client: Client) -> None:
    with pytest.raises(errors.NotFound):
        client.get_job(ID)
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


def test_the_clients_are_public() -> None:
    assert semtask.Client is Client
    assert semtask.AsyncClient is AsyncClient
    assert set(semtask.__all__) == set(dir(semtask))
