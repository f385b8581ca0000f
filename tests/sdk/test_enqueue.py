"""What a call to enqueue stores, looked at in the daemon, and who may call it: threads, loops, forks, jobs."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from semtask import Retry, Semantica, errors
from semtask.protocol.frames import Call, ProgressInfo
from semtask.sdk.task import Task
from semtask.tasks.codec import EncodeError
from semtask.tasks.context import JobContext, context_of
from tests.cli.rig import Shell
from tests.daemon.rig import Daemon, eventually
from tests.sdk.conftest import app_of


@pytest.fixture
def task(app: Semantica) -> Task[[str, int], int]:
    def work(path: str, size: int = 1) -> int:
        return size

    return app.task(name="work", queue="index", retry=Retry(5, base=1, cap=60), deadline=120, tag="t")(work)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_what_is_stored(daemon: Daemon, task: Any) -> None:
    before = now_ms()
    handle = task.enqueue("a.py", size=3)
    job = daemon.job(handle.id, "payload")
    assert job["payload"] == {"path": "a.py", "size": 3}
    assert (job["job_type"], job["execution_mode"], job["state"]) == ("work", "IN_PROCESS", "QUEUED")
    assert (job["queue"], job["tag"], job["max_attempts"]) == ("index", "t", 5)
    assert (job["retry_base_delay_ms"], job["retry_max_delay_ms"]) == (1000, 60_000)
    assert before + 120_000 <= job["deadline"] <= now_ms() + 120_000
    assert handle.deduplicated is False


def test_options_of_a_single_call(daemon: Daemon, task: Any) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    handle = task.using(
        queue="other",
        priority=7,
        tag="u",
        subject="a.py",
        retry=2,
        timeout=timedelta(seconds=1.5),
        ttl=30,
        grace=1,
        at=later,
        deadline=60,
        on_interrupt="fail",
        retry_on_crash=True,
        durability="os",
    ).enqueue("a.py")
    job = daemon.job(handle.id)
    expected = {
        "queue": "other",
        "priority": 7,
        "tag": "u",
        "subject_key": "a.py",
        "max_attempts": 2,
        "timeout_ms": 1500,
        "ttl_ms": 30_000,
        "grace_ms": 1000,
        "on_interrupt": "fail",
        "retry_on_crash": True,
        "state": "SCHEDULED",
        "run_at": int(later.timestamp() * 1000),
        "deadline": int(later.timestamp() * 1000) + 60_000,
    }
    assert {name: job[name] for name in expected} == expected
    assert daemon.job(task.enqueue("b").id)["queue"] == "index"  # the task itself is as before


def test_a_deadline_is_counted_from_the_delay_or_is_a_time(daemon: Daemon, task: Any) -> None:
    before = now_ms()
    delayed = daemon.job(task.using(delay=timedelta(hours=1)).enqueue("a").id)
    assert delayed["state"] == "SCHEDULED"
    assert before + 3_720_000 <= delayed["deadline"] <= now_ms() + 3_720_000
    when = datetime(2040, 1, 1, tzinfo=UTC)
    assert daemon.job(task.using(deadline=when).enqueue("a").id)["deadline"] == when.timestamp() * 1000
    with pytest.raises(ValueError, match="at needs a time zone"):
        task.using(at=datetime(2040, 1, 1))  # noqa: DTZ001 - what is refused


def test_a_subject_and_its_duplicates(daemon: Daemon, task: Any) -> None:
    first = task.using(subject="s").enqueue("1")
    second = task.using(subject="s").enqueue("2")
    assert daemon.job(first.id)["state"] == "SUPERSEDED"
    joined = task.using(subject="s", on_duplicate="join").enqueue("3")
    assert (joined.id, joined.deduplicated) == (second.id, True)
    with pytest.raises(errors.Conflict):
        task.using(subject="s", on_duplicate="reject").enqueue("4")


def test_an_idempotency_key_makes_one_job(task: Any) -> None:
    keyed = task.using(idempotency_key=uuid4().hex)
    first = keyed.enqueue("a")
    again = keyed.enqueue("a")
    assert (again.id, first.deduplicated, again.deduplicated) == (first.id, False, True)
    with pytest.raises(errors.Conflict):
        keyed.enqueue("b")


def test_parameters_with_the_names_of_ours(daemon: Daemon, app: Semantica) -> None:
    given = {"self": 1, "args": 2, "kwargs": 3, "calls": 4}

    @app.task(name="selfish")
    def selfish(self: int, args: int, kwargs: int, calls: int) -> None: ...

    handles = [selfish.enqueue(**given), asyncio.run(selfish.aenqueue(**given)), *selfish.enqueue_many([given])]
    assert [daemon.job(handle.id, "payload")["payload"] for handle in handles] == [given] * 3


def test_a_key_or_a_subject_twice_in_one_request(daemon: Daemon, task: Any) -> None:
    keyed = task.using(idempotency_key=uuid4().hex)
    first, second = keyed.enqueue_many([("a",), ("a",)])
    assert (first.id, first.deduplicated, second.deduplicated) == (second.id, False, True)
    assert daemon.job(first.id)["state"] == "QUEUED"
    total = daemon.stats()["total_jobs"]
    for twice in (task.using(idempotency_key=uuid4().hex), task.using(subject=uuid4().hex, on_duplicate="reject")):
        with pytest.raises(errors.Conflict, match=r"jobs\[0\] and jobs\[1\] of this request have the") as caught:
            twice.enqueue_many([("a",), ("b",)])
        assert "job_id" not in caught.value.details  # there is none: nothing was stored
        assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-7", str(caught.value))
    assert daemon.stats()["total_jobs"] == total


@pytest.mark.parametrize(
    ("argv", "options", "why"),
    [
        ((b"true",), {}, "a word of the command must be a str or a path"),
        (("true", b"x"), {}, "a word of the command must be a str or a path"),
        (("true", 5), {}, "expected str"),
        (("a\0",), {}, "without NUL"),
        (("cat", "a\udc80"), {}, "must be valid text"),
        (("true",), {"env": {"A": 1}}, "the variable 'A' must be a str"),
        (("true",), {"env": {"A": b"x"}}, "the variable 'A' must be a str"),
        (("true",), {"env": {"A=B": "x"}}, "'A=B' cannot be the name of a variable"),
        (("true",), {"env": {"": "x"}}, "'' cannot be the name of a variable"),
        (("true",), {"cwd": b"/"}, "cwd must be a str or a path"),
        (("true",), {"stderr": "both"}, "stderr must be one of 'merged', 'split'"),
        (("true",), {"name": ""}, "name is not valid"),
        (("true",), {"name": "a\nb"}, "name is not valid: must be 1 to 128 characters, no control characters"),
        (("true",), {"access": "read"}, r"access is a list of scopes, such as \['read'\]"),
        (("true",), {"access": ["everything"]}, "access takes 'read'"),
        (("true",), {"sandbox": "iron"}, "the sandbox 'iron' is not valid"),
        (("true",), {"priority": 101}, "priority is not valid"),
        (("true",), {"tag": "a\x1bb"}, "tag is not valid: must be 1 to 256 characters, no control characters"),
    ],
)
def test_a_wrong_command_stores_nothing(daemon: Daemon, app: Semantica, argv: Any, options: Any, why: str) -> None:
    total = daemon.stats()["total_jobs"]
    with pytest.raises((TypeError, ValueError), match=why):
        app.run(*argv, **options)
    assert daemon.stats()["total_jobs"] == total


def test_a_program_with_an_odd_name_gets_a_plain_one(daemon: Daemon, app: Semantica) -> None:
    assert daemon.job(app.run("/nowhere/a\nb\x1b[2J").id)["job_type"] == "a?b?[2J"


def test_many_in_one_transaction(daemon: Daemon, task: Any) -> None:
    handles = task.using(queue="many").enqueue_many([("a",), {"path": "b", "size": 2}, task.args("c", size=3)])
    payloads = [daemon.job(handle.id, "payload")["payload"] for handle in handles]
    assert payloads == [{"path": "a"}, {"path": "b", "size": 2}, {"path": "c", "size": 3}]
    assert task.enqueue_many([]) == []


@pytest.mark.parametrize(
    ("call", "why"), [((5,), "argument 'path' of work"), ((), "missing a required argument"), ("ab", "takes tuples of")]
)
def test_a_wrong_argument_stores_nothing(daemon: Daemon, task: Any, call: Any, why: str) -> None:
    total = daemon.stats()["total_jobs"]
    with pytest.raises(TypeError, match=why):
        task.enqueue_many([("a",), call])
    if isinstance(call, tuple):
        with pytest.raises(TypeError, match=why):
            task.enqueue(*call)
    with pytest.raises(EncodeError):
        task.args("a", size="1")
    assert daemon.stats()["total_jobs"] == total


def test_what_the_daemon_refuses_has_its_class(task: Any) -> None:
    with pytest.raises(errors.ValidationError, match="on_duplicate"):
        task.using(on_duplicate="join").enqueue("a")


# --- who calls -------------------------------------------------------------------------------------------------------


def _sockets(pid: int) -> int:
    links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    return sum(link.startswith("socket:") for link in links)


def test_each_thread_has_a_connection_of_its_own_and_leaves_none(daemon: Daemon, task: Any) -> None:
    task.enqueue("main")
    before = _sockets(daemon.pid)
    ids: list[str] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        barrier.wait(10)
        for number in range(20):
            ids.append(task.enqueue(f"{number}").id)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(ids)) == 80
    gc.collect()  # a socket that is left to it would be an error here
    eventually(lambda: _sockets(daemon.pid) <= before, what="the threads' connections are closed")


def test_event_loops_one_after_the_other(daemon: Daemon, task: Any) -> None:
    async def enqueue() -> list[str]:
        handles = await asyncio.gather(*(task.aenqueue(f"{number}") for number in range(20)))
        many = await task.aenqueue_many([("a",), ("b",)])
        return [handle.id for handle in [*handles, *many]]

    ids = asyncio.run(enqueue()) + asyncio.run(enqueue())
    gc.collect()
    assert len(set(ids)) == 44
    assert daemon.job(ids[-1])["job_type"] == "work"


def test_a_forked_child_has_a_connection_of_its_own(daemon: Daemon, task: Any) -> None:
    task.enqueue("before")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ids = [task.enqueue("child").id for _ in range(50)]
            os.write(writer, json.dumps(ids).encode())
        finally:
            os._exit(0)
    os.close(writer)
    ids = [task.enqueue("parent").id for _ in range(50)]
    with os.fdopen(reader, "rb") as pipe:
        ids += json.loads(pipe.read() or b"[]")
    os.waitpid(child, 0)
    assert len(set(ids)) == 100
    payloads = [daemon.job(job_id, "payload")["payload"]["path"] for job_id in ids]
    assert payloads == ["parent"] * 50 + ["child"] * 50


def test_the_first_enqueue_starts_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path))
    app = Semantica(home=tmp_path / "home")
    try:
        handle = app.task(name="w")(lambda: None).enqueue()
        assert handle.state() == "QUEUED"
        app.close()
    finally:
        shell.stop()


def test_without_a_daemon(tmp_path: Path) -> None:
    app = app_of(tmp_path / "home")
    task = app.task(name="w")(lambda: None)
    with pytest.raises(errors.DaemonUnavailable, match="start one with `semtask up`"):
        task.enqueue()
    with pytest.raises(errors.DaemonUnavailable):
        asyncio.run(task.aenqueue())


# --- from inside of a job --------------------------------------------------------------------------------------------


class RecordingChannel:
    """What a worker would be told by the job's context."""

    def __init__(self) -> None:
        self.blocked_on: list[list[str]] = []

    def progress(self, job: JobContext, progress: ProgressInfo) -> None: ...

    def blocked(self, job: JobContext, on: Sequence[str]) -> None:
        self.blocked_on.append(list(on))

    def look_for_stop(self, job: JobContext) -> None: ...


@pytest.fixture
def running(app: Semantica, tmp_path: Path) -> Iterator[tuple[JobContext, RecordingChannel]]:
    """The context of a job that is stored in the daemon, as its worker makes it."""
    parent = app.run("true")
    trace = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
    call = Call(job_id=parent.id, claim_no=1, task="parent", payload="{}", attempt=1, max_attempts=1, traceparent=trace)
    channel = RecordingChannel()
    yield JobContext(call, channel, str(tmp_path)), channel
    parent.wait(30)


def test_a_job_is_the_parent_of_what_it_enqueues(daemon: Daemon, app: Semantica, task: Any, running: Any) -> None:
    context, _ = running
    child = context_of(context).run(task.enqueue, "a")
    command = context_of(context).run(app.run, "true")
    for handle in (child, command):
        job = daemon.job(handle.id)
        assert (job["parent_job_id"], job["trace_context"]) == (context.job_id, context.traceparent)
    outside = daemon.job(task.enqueue("a").id)
    assert (outside["parent_job_id"], outside["trace_context"]) == (None, None)


def test_the_trace_of_the_environment(daemon: Daemon, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
    monkeypatch.setenv("TRACEPARENT", trace)
    assert daemon.job(task.enqueue("a").id)["trace_context"] == trace
    monkeypatch.setenv("TRACEPARENT", "broken")
    assert daemon.job(task.enqueue("a").id)["trace_context"] is None


def test_a_job_that_waits_says_so(app: Semantica, running: Any) -> None:
    context, channel = running
    slow = app.run("sleep", "0.3")
    assert context_of(context).run(slow.result).exit_code == 0
    assert channel.blocked_on == [[slow.id], []]
    channel.blocked_on.clear()
    assert context_of(context).run(slow.result).exit_code == 0  # it has ended: nothing is waited for
    assert channel.blocked_on == []


def test_a_coroutine_that_waits_says_so(app: Semantica, running: Any) -> None:
    context, channel = running

    async def wait() -> int:
        slow = await app.arun("sleep", "0.3")
        return (await slow).exit_code

    async def main() -> int:
        return await asyncio.get_running_loop().create_task(wait(), context=context_of(context))

    assert asyncio.run(main()) == 0
    assert [len(on) for on in channel.blocked_on] == [1, 0]


def test_a_wait_that_gives_up_counts_again(app: Semantica, running: Any) -> None:
    context, channel = running
    slow = app.run("sleep", "30")
    with pytest.raises(TimeoutError):
        context_of(context).run(slow.result, 0.1)
    assert channel.blocked_on == [[slow.id], []]
    slow.cancel(grace=0)
    eventually(lambda: slow.state() == "CANCELLED")
