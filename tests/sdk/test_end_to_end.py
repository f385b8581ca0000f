"""Tasks from their call to their result, through a daemon and its workers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from semtask import JobCancelled, JobFailed, JobHandle, JobTimeout
from semtask.model.state import State
from tests.daemon.rig import Daemon, running_daemon
from tests.sdk import work

ROOT = Path(__file__).resolve().parents[2]
KEY = UUID("12345678-1234-5678-1234-567812345678")


@pytest.fixture(scope="module", autouse=True)
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that serves tests.sdk.work, whose tasks the test enqueues as any program would."""
    home = tmp_path_factory.mktemp("sdk") / "home"
    home.mkdir(mode=0o700)
    apps = {"apps": {"work": {"module": "tests.sdk.work:app", "directory": str(ROOT), "python": sys.executable}}}
    (home / "apps.json").write_text(json.dumps(apps))
    with pytest.MonkeyPatch.context() as patch, running_daemon(home, SEMANTICA_MAX_PROCESSES="4") as running:
        patch.setenv("SEMANTICA_HOME", str(home))
        patch.setenv("HOME", str(home))
        yield running
        work.app.close()


def test_a_result() -> None:
    assert work.add.enqueue(2, b=3).result(timeout=60) == 5
    assert work.add.enqueue(2).result(timeout=60) == 3


def test_arguments_and_results_keep_their_types() -> None:
    now = datetime.now(UTC)
    entry = work.Entry(Path("/a"), 1, {now})
    handle = work.typed.enqueue(entry, b"\x00", b"\xff", key=KEY, out=Path("o"))
    assert handle.result(timeout=60) == (work.Entry(Path("/a/x"), 2, {now}), [b"\x00", b"\xff"], {"out": Path("o")})
    assert work.report.enqueue(KEY).result(timeout=60) == work.Report(key=KEY, took=timedelta(seconds=1.5))


def test_unions_and_what_would_change_if_it_were_constructed_again() -> None:
    report = work.Report(key=KEY, took=timedelta(1))
    day, moment = date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)
    for when, who, entry, expected in (
        (day, str(KEY), None, str(KEY)),
        (moment, KEY, None, KEY),
        (day, "a", report, report),
        (moment, KEY, work.Entry(Path("a")), work.Entry(Path("a"))),
    ):
        found = work.union.enqueue(when, who, entry).result(timeout=60)
        assert (found, type(found)) == (expected, type(expected))
    value = work.Changing(1)
    before = work.Changing.ran
    assert work.changing.enqueue(value).result(timeout=60) == (value, 2, 0)
    assert work.Changing.ran == before


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("tuple", r"a tuple has no JSON form by itself.*, or pass list\(value\)"),
        ("keys", "the key 1 is a int"),
        ("date", "a date has no JSON form"),
    ],
)
def test_a_result_that_plain_json_would_change_is_refused(how: str, why: str) -> None:
    with pytest.raises(JobFailed, match=f"(?s)EncodeError: the result of .*untyped_result: .*{why}"):
        work.untyped_result.enqueue(how).result(timeout=60)


def test_a_task_that_cannot_be_offered_says_why_and_the_others_run(daemon: Daemon) -> None:
    name = work.turns.name
    why = f"parameter 'number' of the task {name}: complex has no JSON form; write tuple[float, float]"
    with pytest.raises(TypeError, match=re.escape(why)):
        work.turns.enqueue(1j)
    (app,) = daemon.rpc("apps.list.v1")["apps"]
    assert (app["state"], app["refused"]) == ("ready", {name: why})
    job = daemon.rpc("dev.enqueue.v1", job_type=name, payload={"number": 1}, execution_mode="IN_PROCESS")
    waiting = daemon.rpc("dev.get_job.v1", job_id=job["job_id"])["waiting"]
    assert waiting == {"reason": "no_app", "text": f"the app 'work' cannot offer this task: {why}"}
    assert work.app.job(job["job_id"]).cancel()


def test_many_at_once_from_an_event_loop() -> None:
    async def main() -> list[int]:
        handles = await work.add.aenqueue_many([(number,) for number in range(300)])
        return await asyncio.gather(*(handle.aresult(60) for handle in handles))

    assert asyncio.run(main()) == [number + 1 for number in range(300)]


def test_an_exception_arrives_with_its_traceback_and_cause() -> None:
    handle = work.fails.enqueue("cause")
    with pytest.raises(JobFailed, match="failed: ValueError: no entry") as caught:
        handle.result(timeout=60)
    assert 'raise ValueError("no entry") from error' in caught.value.traceback
    assert 'work.py", line' in str(caught.value)
    assert caught.value.cause is not None
    assert (caught.value.cause.type, caught.value.end_cause) == ("KeyError", "exception")
    told = handle.exception()
    assert told is not None
    assert told.type == "ValueError"


@pytest.mark.parametrize(
    ("how", "error", "end_cause", "text"),
    [
        ("permanent", JobFailed, "exception", "cannot be mended"),
        ("cancel", JobCancelled, "cancelled", "not wanted"),
        ("exit", JobFailed, "worker_crash", "exit code 0"),
    ],
)
def test_other_ends_that_a_task_can_make(how: str, error: type[Exception], end_cause: str, text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        work.fails.using(retry=3).enqueue(how).result(timeout=60)
    assert caught.value.end_cause == end_cause  # type: ignore[attr-defined]


def test_retries_and_snoozes(tmp_path: Path) -> None:
    handle = work.flaky.enqueue(tmp_path / "m")
    told = [line.partition(" ")[2] for line in handle.logs(follow=True)]
    assert handle.result(timeout=60) == 3
    assert [line for line in told if "attempt" in line] == [f"OUT attempt {n}" for n in (1, 2, 3)]
    assert work.snoozes.enqueue(tmp_path / "s").result(timeout=60) is True


def test_a_result_that_is_not_of_its_type() -> None:
    with pytest.raises(JobFailed, match=r"the result of .*wrong_result: expected int, got str"):
        work.wrong_result.using(retry=3).enqueue().result(timeout=60)


def test_a_large_result_is_kept_in_a_file() -> None:
    handle = work.large.enqueue(1_000_000)
    assert handle.result(timeout=60) == "x" * 1_000_000
    (artifact,) = handle.artifacts()
    assert artifact.is_result
    assert artifact.size == 1_000_002
    assert work.app.job(handle.id).result(timeout=60) == "x" * 1_000_000


@pytest.mark.parametrize("task", [work.sleeps, work.dozes])
def test_timeout_and_cancel_end_a_task(task: Any) -> None:
    with pytest.raises(JobTimeout, match="timeout_ms=300"):
        task.using(timeout=0.3).enqueue(60).result(timeout=60)
    handle: JobHandle[None] = task.enqueue(60)
    while handle.state() is not State.RUNNING:
        pass
    assert handle.cancel()
    with pytest.raises(JobCancelled):
        handle.result(timeout=60)


def test_what_a_running_task_shows(tmp_path: Path) -> None:
    handle = work.busy.enqueue(tmp_path / "go")
    lines = handle.logs(follow=True)
    assert next(lines).endswith("begun")
    progress = handle.progress()
    assert progress is not None
    assert (progress.done, progress.total, progress.text) == (1, 2, "half")
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.1)
    (tmp_path / "go").touch()
    assert handle.result(timeout=60) == handle.id
    assert list(lines) == []
    progress = handle.progress()
    assert progress is not None
    assert (progress.done, progress.text) == (2, "all")
    (artifact,) = handle.artifacts()
    assert (artifact.name, Path(artifact.path).read_text()) == ("note.txt", "kept")


@pytest.mark.parametrize("task", [work.family, work.async_family])
def test_a_task_waits_for_its_child_in_a_queue_of_one(daemon: Daemon, task: Any) -> None:
    daemon.rpc("queues.configure.v1", queue="narrow", concurrency=1)
    handle = task.enqueue(3)
    assert handle.result(timeout=60) == 3
    found = daemon.rpc("dev.query_jobs.v1", filter={"job_type": task.name})["items"]
    parents = {job["job_id"]: job["parent_job_id"] for job in found}
    chain = [job_id for job_id in parents if job_id not in parents.values()]
    while parents[chain[-1]] is not None:
        chain.append(parents[chain[-1]])
    assert len(chain) == 4
    assert chain[-1] == handle.id


def test_what_a_task_waits_for_may_fail_or_be_a_command() -> None:
    assert "no entry" in work.parent_of_a_failure.enqueue().result(timeout=60)
    assert work.runs_a_command.enqueue().result(timeout=60) == 7


def test_a_handle_of_an_id_in_another_program() -> None:
    handle = work.add.enqueue(5)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(writer, str(work.add.handle(handle.id).result(timeout=60)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "6"
    os.waitpid(child, 0)
    assert work.app.job(handle.id).result(timeout=60) == 6
