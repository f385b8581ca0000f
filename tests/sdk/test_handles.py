"""Handles of jobs in a real daemon: waiting, results, output, cancelling, and every way to end."""

from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from semtask import (
    CompletedCommand,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    JobSuperseded,
    JobTimeout,
    Semantica,
    errors,
)
from semtask.model.state import State
from tests.daemon.rig import Daemon, eventually, running_daemon
from tests.sdk.conftest import app_of

MISSING = "01a207a1-0000-7000-8000-000000000000"


@pytest.fixture
def task(app: Semantica) -> Any:
    def work(path: str) -> int:
        return len(path)

    return app.task(name="work")(work)


# --- commands --------------------------------------------------------------------------------------------------------


def test_a_command_and_its_exit_code(app: Semantica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_TEST", "kept")
    monkeypatch.setenv("SECRET", "dropped")
    script = 'pwd; echo "$LC_TEST,$SECRET,$MORE"; umask; exit 3'
    handle = app.run("sh", "-c", script, env={"MORE": "given"})
    done = handle.result(timeout=30)
    assert (done.exit_code, done.signal) == (3, None)
    assert list(handle.logs()) == [str(tmp_path), "kept,,given", "0022"]
    with pytest.raises(JobFailed, match="exit code 3"):
        done.check()
    assert app.run("true").result().check().exit_code == 0


def test_a_command_has_the_limits_of_its_caller(app: Semantica) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (99_999, hard))
    try:
        handle = app.run("grep", "Max cpu", "/proc/self/limits")
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    handle.result(timeout=30)
    assert next(iter(handle.logs())).split()[:4] == ["Max", "cpu", "time", "99999"]


def test_a_command_that_a_signal_ends(app: Semantica) -> None:
    done = app.run("sh", "-c", "kill -KILL $$").result(timeout=30)
    assert (done.exit_code, done.signal) == (137, 9)


def test_where_and_how_a_command_runs(daemon: Daemon, app: Semantica, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    handle = app.run(Path("/bin/pwd"), cwd=tmp_path / "sub", name="where", queue="other", stderr="split")
    assert handle.result(timeout=30).exit_code == 0
    assert list(handle.logs()) == [str(tmp_path / "sub")]
    job = daemon.job(handle.id, "payload")
    assert (job["job_type"], job["queue"], job["payload"]["stderr"]) == ("where", "other", "split")
    with pytest.raises(ValueError, match="run needs a command"):
        app.run()


def test_a_command_that_cannot_be_started_has_failed(app: Semantica) -> None:
    with pytest.raises(JobFailed, match="no-such-program") as caught:
        app.run("no-such-program").result(timeout=30)
    assert caught.value.end_cause == "spawn_failed"


# --- every way to end ------------------------------------------------------------------------------------------------


def test_cancelled(app: Semantica) -> None:
    handle = app.run("sleep", "60", grace=0)
    assert handle.cancel() is True
    with pytest.raises(JobCancelled, match=f"job {handle.id} .sleep. was cancelled") as caught:
        handle.result(timeout=30)
    assert caught.value.job_id == handle.id
    assert handle.cancel() is False
    assert handle.state() is State.CANCELLED


def test_timeout_and_deadline_are_a_failure_of_their_own(app: Semantica) -> None:
    for options in ({"timeout": 0.3}, {"deadline": 0.3}):
        with pytest.raises(JobTimeout) as caught:
            app.run("sleep", "60", grace=0, **options).result(timeout=30)  # type: ignore[arg-type]
        assert isinstance(caught.value, JobFailed)
        assert caught.value.end_cause in {"timeout", "deadline"}


def test_superseded_names_the_newer_job(app: Semantica, task: Any) -> None:
    first = task.using(subject="s").enqueue("1")
    second = task.using(subject="s").enqueue("2")
    with pytest.raises(JobSuperseded, match=second.id) as caught:
        first.result(timeout=30)
    assert caught.value.superseded_by == second.id


def test_expired(task: Any) -> None:
    with pytest.raises(JobExpired, match=r"within its ttl of 0\.2 s") as caught:
        task.using(ttl=0.2).enqueue("1").result(timeout=30)
    assert caught.value.end_cause == "ttl"
    with pytest.raises(JobExpired, match="before its deadline"):
        task.using(deadline=0.2).enqueue("1").result(timeout=30)
    assert issubclass(JobExpired, JobError)


def test_a_wait_that_is_over_leaves_the_job_alone(app: Semantica) -> None:
    handle = app.run("sleep", "60")
    for wait in (handle.result, handle.wait):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=f"job {handle.id} has not ended within 0.2 s; it goes on"):
            wait(0.2)
        assert 0.2 <= time.monotonic() - began < 10
    with pytest.raises(TimeoutError, match="it goes on"):
        asyncio.run(handle.aresult(timeout=0.2))
    assert handle.state() in {State.QUEUED, State.RUNNING}
    handle.cancel(grace=0)
    assert handle.wait(30) is State.CANCELLED


# --- handles ---------------------------------------------------------------------------------------------------------


def test_a_handle_of_an_id(app: Semantica, task: Any) -> None:
    command = app.run("sh", "-c", "exit 4")
    found = app.job(command.id).result(timeout=30)
    assert isinstance(found, CompletedCommand)
    assert found.exit_code == 4
    enqueued = task.enqueue("a")
    assert task.handle(enqueued.id).state() is State.QUEUED
    assert task.handle(enqueued.id).info().job_type == "work"
    for look in (app.job(MISSING).state, app.job(MISSING).result, app.job(MISSING).cancel):
        with pytest.raises(errors.NotFound):
            look()


def test_nothing_to_tell_yet(task: Any) -> None:
    handle = task.enqueue("a")
    assert (handle.progress(), handle.exception(), handle.artifacts()) == (None, None, [])
    assert list(handle.logs()) == []


def test_a_wait_outlasts_a_restart_of_the_daemon(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        app = app_of(daemon.home)
        handle = app.task(name="w")(lambda: None).enqueue()
        states: list[State] = []
        lines: list[list[str]] = []

        async def alines() -> list[str]:
            return [line async for line in handle.alogs(follow=True)]

        waiting = [
            threading.Thread(target=lambda: states.append(handle.wait(60))),
            threading.Thread(target=lambda: states.append(asyncio.run(handle.await_end(60)))),
            threading.Thread(target=lambda: lines.append(list(handle.logs(follow=True)))),
            threading.Thread(target=lambda: lines.append(asyncio.run(alines()))),
        ]
        for thread in waiting:
            thread.start()
        daemon.kill()
        daemon.start()
        app.job(handle.id).cancel()
        for thread in waiting:
            thread.join(60)
        assert states == [State.CANCELLED, State.CANCELLED]
        assert lines == [[], []]
        app.close()


# --- side by side ----------------------------------------------------------------------------------------------------


def test_hundreds_of_jobs_are_awaited_at_once_and_leave_room_for_more(task: Any) -> None:
    """As many requests as jobs would take all connections, and nobody could cancel what is waited for."""

    async def main() -> list[Any]:
        handles = await task.using(queue="crowd").aenqueue_many([("a",)] * 300)
        results = [asyncio.ensure_future(handle.aresult()) for handle in handles]
        await asyncio.sleep(0)
        for number, handle in enumerate(handles):
            if number % 50 == 0:
                await asyncio.sleep(0.01)  # some ends come while others are asked for
            assert await handle.acancel()
        return await asyncio.wait_for(asyncio.gather(*results, return_exceptions=True), 60)

    results = asyncio.run(main())
    assert len(results) == 300
    assert all(isinstance(result, JobCancelled) for result in results)
    assert len({result.job_id for result in results}) == 300


def test_a_job_that_is_not_there_does_not_disturb_the_others(app: Semantica) -> None:
    async def main() -> list[Any]:
        handles = [await app.arun("true") for _ in range(5)]
        waits = [handle.aresult(30) for handle in [*handles, app.job(MISSING), *handles]]
        return await asyncio.gather(*waits, return_exceptions=True)

    *first, missing, a, b, c, d, e = asyncio.run(main())
    assert isinstance(missing, errors.NotFound)
    assert [result.exit_code for result in [*first, a, b, c, d, e]] == [0] * 10


def test_what_is_awaited_later_is_noticed_while_the_first_goes_on(app: Semantica) -> None:
    async def main() -> list[int]:
        slow = await app.arun("sleep", "60")
        waiting = asyncio.ensure_future(slow.aresult())
        codes = []
        for code in range(8):  # more than the requests that are under way at once
            handle = await app.arun("sh", "-c", f"exit {code}")
            codes.append((await handle.aresult(30)).exit_code)
        assert not waiting.done()
        await slow.acancel(grace=0)
        with pytest.raises(JobCancelled):
            await waiting
        return codes

    assert asyncio.run(main()) == list(range(8))


def test_what_is_awaited_one_by_one_shares_a_few_requests(task: Any) -> None:
    async def main() -> list[Any]:
        handles = await task.using(queue="few").aenqueue_many([("a",)] * 12)
        results = []
        for handle in handles:
            results.append(asyncio.ensure_future(handle.aresult()))
            await asyncio.sleep(0.02)  # so that the request for it has begun
        others = asyncio.all_tasks() - {asyncio.current_task(), *results}
        assert 1 <= len(others) <= 4
        for handle in handles:
            assert await handle.acancel()
        return await asyncio.wait_for(asyncio.gather(*results, return_exceptions=True), 60)

    assert all(isinstance(result, JobCancelled) for result in asyncio.run(main()))


def test_an_await_that_is_given_up_leaves_no_request(daemon: Daemon, app: Semantica) -> None:
    async def main() -> set[str]:
        slow = await app.arun("sleep", "60")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await slow.aresult(timeout=0.1)
        await asyncio.sleep(0)
        left = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
        await slow.acancel(grace=0)
        await slow.await_end(30)
        return left

    assert asyncio.run(main()) == {main.__qualname__}


# --- output ----------------------------------------------------------------------------------------------------------

FLAKY = """
n=$(cat count 2>/dev/null || echo 0); echo $((n + 1)) > count
echo "attempt $n"; printf 'no end %s' $n
[ $n -ge 2 ]
"""


def test_following_the_output_over_retries(daemon: Daemon, app: Semantica, tmp_path: Path) -> None:
    from semtask import Retry

    def start() -> Any:
        (tmp_path / "count").unlink(missing_ok=True)
        return app.run("sh", "-c", FLAKY, cwd=tmp_path, retry=Retry(3, base=0.05))

    expected = [line for n in range(3) for line in (f"attempt {n}", f"no end {n}")]
    handle = start()
    assert list(handle.logs(follow=True)) == expected
    assert handle.state() is State.DONE
    assert list(handle.logs()) == expected[-2:]

    async def follow() -> list[str]:
        return [line async for line in start().alogs(follow=True)]

    assert asyncio.run(follow()) == expected


def test_lines_come_as_they_are_written(app: Semantica, tmp_path: Path) -> None:
    handle = app.run("sh", "-c", f"echo one; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo two")
    lines = handle.logs(follow=True)
    assert next(lines) == "one"
    assert handle.state() is State.RUNNING
    (tmp_path / "go").touch()
    assert list(lines) == ["two"]


def test_output_that_is_no_text_and_its_other_stream(app: Semantica) -> None:
    handle = app.run("sh", "-c", r"printf 'a\377b\nlong\n'; echo err >&2", stderr="split")
    handle.wait(30)
    assert list(handle.logs()) == ["a\ufffdb", "long"]
    assert list(handle.logs(stream="stderr")) == ["err"]


def test_ctrl_c_ends_the_waiting_and_not_the_job(daemon: Daemon) -> None:
    """The connection stays usable: the answer that nobody waits for any more is not taken for another one."""
    code = """
import asyncio
from semtask import Semantica
app = Semantica(autostart=False)
handle = app.run("sleep", "60")
for way in (handle.result, handle.wait, lambda: list(handle.logs(follow=True)), lambda: asyncio.run(handle.aresult())):
    try:
        print("waiting", flush=True)
        way()
    except KeyboardInterrupt:
        print(handle.info().job_id == handle.id and handle.state(), flush=True)
print(handle.cancel(), handle.wait(20), flush=True)
"""
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, env=daemon.env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        stat = Path(f"/proc/{process.pid}/stat")
        for _ in range(4):
            assert process.stdout.readline() == "waiting\n"
            eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", what="it waits")
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "RUNNING\n"
        assert process.stdout.readline() == "True CANCELLED\n"


# --- jobs that nobody can run ----------------------------------------------------------------------------------------


def test_whoever_waits_for_a_job_that_nobody_can_run_is_told_why(
    app: Semantica, caplog: pytest.LogCaptureFixture
) -> None:
    def nobody() -> None: ...

    task = app.task(name="nobody:runs")(nobody)
    said = "waits: no app offers the task 'nobody:runs', so nothing can run it: semtask up --app"

    def reports() -> list[str]:
        return [record.message for record in caplog.records if record.name == "semtask"]

    handle = task.enqueue()
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.5)
    assert reports() == []  # the error says it
    with pytest.raises(TimeoutError):
        handle.result(timeout=3)
    (line,) = reports()
    assert line.startswith(f"job {handle.id} {said}")

    async def all_of_them() -> None:
        handles = await task.aenqueue_many([()] * 20)
        await asyncio.gather(*(one.aresult(timeout=4) for one in handles), return_exceptions=True)

    caplog.clear()
    asyncio.run(all_of_them())
    (line,) = reports()  # one for all of them
    assert said in line
    assert caplog.records[-1].levelname == "WARNING"


def test_the_report_goes_to_stderr_where_no_logging_is_set_up(daemon: Daemon) -> None:
    code = (
        "from semtask import Semantica; import sys; app = Semantica(sys.argv[1], autostart=False);"
        "task = app.task(name='nobody:runs')(len); app.job(sys.argv[2]).result(3)"
    )
    job_id = app_of(daemon.home).task(name="nobody:runs")(len).enqueue([]).id
    done = subprocess.run(
        [sys.executable, "-c", code, str(daemon.home), job_id], capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith(f"job {job_id} waits: no app offers the task 'nobody:runs'")
