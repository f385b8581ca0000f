"""The fixture `semantica`: the real path of a job, in this thread, by a clock that the test moves."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from semtask import Cancel, JobCancelled, JobExpired, JobFailed, Permanent, Retry, Semantica, Snooze, current_job
from semtask.errors import DaemonUnavailable, ValidationError
from semtask.model.state import EndCause, State
from semtask.tasks.codec import EncodeError
from semtask.testing import InlineSemantica, JobNotEnded, inline

app = Semantica()
seen: list[object] = []


@pytest.fixture
def semantica(tmp_path: Path) -> Iterator[InlineSemantica]:
    seen.clear()
    with inline(tmp_path) as engine:
        yield engine


@app.task
def add(a: int, b: int = 2) -> int:
    seen.append((a, b, threading.current_thread().name))
    return a + b


@app.task(name="sum-of-paths")
async def asum(*paths: Path) -> int:
    await asyncio.sleep(0)
    seen.append(asyncio.get_running_loop())
    return sum(len(path.parts) for path in paths)


@app.task(retry=Retry(3, base=10.0, factor=3.0))
def flaky() -> int:
    attempt = current_job().attempt
    if attempt < 3:
        raise ValueError(f"attempt {attempt}")
    return attempt


@app.task
def parent(number: int) -> int:
    return add.enqueue(number, 0).result() * 10


@app.task
def waits_for_later() -> None:
    add.using(delay=60).enqueue(1).result()


meeting = threading.Barrier(2)


@app.task
def meets() -> str:
    meeting.wait(20)
    meeting.wait(20)
    return "met"


@app.task
async def async_parent(number: int) -> int:
    one, two = await asyncio.gather(await add.aenqueue(number, 0), await asum.aenqueue(Path("a/b")))
    return one * 10 + two


@app.task
def ends(how: str) -> None:
    if how == "permanent":
        raise Permanent("never")
    if how == "cancel":
        raise Cancel("not wanted")
    if how == "exit":
        raise SystemExit(3)
    if how == "snooze" and current_job().attempt == 1:
        raise Snooze(60)
    if how == "fail":
        pytest.fail("meant for the test")


@app.task
async def aexits() -> None:
    raise SystemExit(3)


@app.task
def gives(what: str) -> object:
    return object() if what == "object" else float("nan")


@app.task(concurrency=1)
def again() -> None:
    again.enqueue()


@app.task
def stopped_inside() -> None:
    job = app.job(current_job().job_id)
    assert job.cancel()
    current_job().check_cancelled()


@app.task
def reports() -> None:
    current_job().progress(3, 4, "three")
    current_job().artifact("a.txt", "text")


# --- running --------------------------------------------------------------------------------------------------------


def test_nothing_runs_before_the_test_says_so(semantica: InlineSemantica) -> None:
    handle = add.enqueue(1)
    assert handle.state() is State.QUEUED
    assert not seen
    [job] = semantica.run_pending()
    assert (job.job_id, job.state, job.result, job.attempts) == (handle.id, State.DONE, 3, 1)
    assert seen == [(1, 2, threading.current_thread().name)]
    assert handle.result() == 3
    assert semantica.run_pending() == []


def test_the_real_rules_say_what_runs_next(semantica: InlineSemantica) -> None:
    for number, priority in enumerate((0, 5, -5, 5)):
        add.using(priority=priority).enqueue(number, 0)
    add.using(subject="s").enqueue(10, 0)
    add.using(subject="s").enqueue(11, 0)
    semantica.run_pending()
    assert [entry[0] for entry in seen if isinstance(entry, tuple)] == [1, 3, 0, 11, 2]
    [superseded] = semantica.jobs(state="SUPERSEDED")
    assert superseded.payload == {"a": 10, "b": 0}


def test_what_jobs_enqueue_runs_too_and_a_chain_without_end_is_an_error(semantica: InlineSemantica) -> None:
    again.enqueue()
    with pytest.raises(AssertionError, match="20 jobs have run, and there are more: does a task enqueue itself"):
        semantica.run_pending(limit=20)
    assert len(semantica.jobs(task=again, state=State.DONE)) == 20


def test_waiting_runs_what_is_due(semantica: InlineSemantica) -> None:
    assert parent.enqueue(4).result() == 40
    child = semantica.assert_enqueued(add, a=4, count=1)[0]
    assert child.parent_job_id == semantica.jobs(task=parent)[0].job_id


def test_a_task_that_waits_in_vain_is_told_so(semantica: InlineSemantica) -> None:
    waits_for_later.enqueue()
    [job] = semantica.run_pending()
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.startswith("JobNotEnded: ")
    assert "it runs in 60 s" in job.error


def test_what_runs_in_another_thread_is_waited_for(semantica: InlineSemantica) -> None:
    handle = meets.enqueue()
    other = threading.Thread(target=semantica.run_pending)
    other.start()
    meeting.wait(20)
    threading.Timer(0.1, meeting.wait, [20]).start()
    assert handle.result() == "met"
    other.join()


def test_async_tasks_of_a_sync_test_share_a_loop(semantica: InlineSemantica) -> None:
    handles = asum.enqueue_many([(Path("a/b"),), (Path("a"), Path("b/c"))])
    semantica.run_pending()
    assert [handle.result() for handle in handles] == [2, 3]
    assert len({id(loop) for loop in seen}) == 1
    assert async_parent.enqueue(5).result() == 52


def test_async_tasks_of_an_async_test_run_on_its_loop(semantica: InlineSemantica) -> None:
    async def scenario() -> None:
        handle = await asum.aenqueue(Path("a"))
        [job] = await semantica.arun_pending()
        assert job.result == 1
        assert seen == [asyncio.get_running_loop()]
        assert await handle == 1
        assert await (await async_parent.aenqueue(1)) == 12
        # Without `await` there is no way into the loop that runs: they get another one.
        assert asum.enqueue(Path("a/b")).result() == 2

    asyncio.run(scenario())


def test_a_job_goes_on_when_who_waits_for_it_is_cancelled(semantica: InlineSemantica) -> None:
    begun, release = asyncio.Event(), asyncio.Event()
    mine = Semantica()

    @mine.task(name="patient")
    async def patient() -> str:
        begun.set()
        await release.wait()
        return "done"

    async def scenario() -> None:
        handle = await patient.aenqueue()
        waiting = asyncio.ensure_future(handle.aresult())
        await begun.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        release.set()
        assert await handle == "done"

    asyncio.run(asyncio.wait_for(scenario(), 20))


# --- ends -----------------------------------------------------------------------------------------------------------


def test_retries_come_by_the_clock(semantica: InlineSemantica) -> None:
    handle = flaky.enqueue()
    [job] = semantica.run_pending()
    assert (job.state, job.error) == (State.SCHEDULED, "ValueError: attempt 1")
    with pytest.raises(JobNotEnded, match=r"it runs in 10 s after ValueError: attempt 1, .* semantica.advance\(10\)"):
        handle.result()
    semantica.advance(9.999)
    assert semantica.run_pending() == []
    semantica.advance(timedelta(milliseconds=1))
    assert [job.attempts for job in semantica.run_pending()] == [2]
    semantica.advance(30)
    semantica.run_pending(check=True)
    assert handle.result() == 3


def test_run_all_skips_the_time_between(semantica: InlineSemantica) -> None:
    flaky.enqueue()
    add.using(delay=3600).enqueue(1)
    before = semantica.now
    assert [job.attempts for job in semantica.run_all()] == [3, 3, 3, 1]  # as they are in the end
    assert semantica.now - before == timedelta(hours=1)


def test_ttl_and_deadline_pass_by_the_clock(semantica: InlineSemantica) -> None:
    late = add.using(ttl=5).enqueue(1)
    over = add.using(deadline=timedelta(seconds=7)).enqueue(2)
    semantica.advance(6)
    assert [late.state(), over.state()] == [State.SKIPPED_TTL, State.QUEUED]
    semantica.advance(1)
    with pytest.raises(JobExpired):
        over.result()
    assert semantica.run_pending() == []
    assert add.using(deadline=5).enqueue(3).result() == 5  # counted from what the clock shows


@pytest.mark.parametrize(
    ("how", "state", "end_cause"),
    [
        ("permanent", State.FAILED, EndCause.EXCEPTION),
        ("cancel", State.CANCELLED, EndCause.CANCELLED),
        ("exit", State.FAILED, EndCause.EXCEPTION),
    ],
)
def test_what_a_task_raises_decides(semantica: InlineSemantica, how: str, state: State, end_cause: EndCause) -> None:
    handle = ends.using(retry=1 if how == "exit" else 5).enqueue(how)
    [job] = semantica.run_pending()
    assert (job.state, job.end_cause) == (state, end_cause)
    with pytest.raises((JobFailed, JobCancelled)):
        handle.result()


def test_an_exit_in_an_async_task_ends_its_job_alone(semantica: InlineSemantica) -> None:
    async def scenario() -> None:
        handle = await aexits.aenqueue()
        await semantica.arun_pending()
        with pytest.raises(JobFailed, match="SystemExit: 3"):
            await handle

    asyncio.run(scenario())


def test_a_snoozed_job_comes_again_at_no_cost(semantica: InlineSemantica) -> None:
    ends.enqueue("snooze")
    assert [job.state for job in semantica.run_pending()] == [State.SCHEDULED]
    semantica.advance(60)
    [job] = semantica.run_pending()
    assert (job.state, job.attempts, job.failures) == (State.DONE, 2, 0)


def test_what_is_meant_for_the_test_gets_there(semantica: InlineSemantica) -> None:
    handle = ends.enqueue("fail")
    with pytest.raises(pytest.fail.Exception, match="meant for the test"):
        semantica.run_pending()
    assert handle.state() is State.FAILED


def test_the_traceback_shows_the_task_alone(semantica: InlineSemantica) -> None:
    handle = flaky.using(retry=1).enqueue()
    with pytest.raises(JobFailed, match="ValueError: attempt 1") as failed:
        semantica.run_pending(check=True)
    assert failed.value.traceback.count("File ") == 1
    assert "in flaky" in failed.value.traceback
    assert handle.state() is State.FAILED


def test_arguments_and_results_are_really_encoded(semantica: InlineSemantica) -> None:
    with pytest.raises(EncodeError, match="argument 'a'"):
        add.enqueue(object())  # type: ignore[arg-type]
    handle = gives.enqueue("object")
    semantica.run_pending()
    with pytest.raises(JobFailed, match="EncodeError: the result of"):
        handle.result()
    with pytest.raises(JobFailed, match="NaN"):
        gives.enqueue("nan").result()
    with pytest.raises(ValidationError, match="on_duplicate"):  # admission is real, too
        add.using(on_duplicate="join").enqueue(1)


def test_cancelling_from_within(semantica: InlineSemantica) -> None:
    handle = stopped_inside.enqueue()
    semantica.run_pending()
    assert handle.state() is State.CANCELLED


def test_progress_and_artifacts(semantica: InlineSemantica) -> None:
    handle = reports.enqueue()
    semantica.run_pending(check=True)
    progress = handle.progress()
    assert progress is not None
    assert (progress.done, progress.total, progress.text) == (3, 4, "three")
    [artifact] = handle.artifacts()
    assert Path(artifact.path).read_text() == "text"


def test_commands_are_stored_and_not_run(semantica: InlineSemantica) -> None:
    handle = app.run("make", "test", queue="build")
    assert semantica.run_pending() == []
    assert semantica.assert_enqueued("make", args=["test"], count=1)[0].queue == "build"
    assert handle.state() is State.QUEUED
    with pytest.raises(JobNotEnded, match="commands are not run inline; the fixture semantica_daemon"):
        handle.result()


def test_logs_are_not_waited_for_either(semantica: InlineSemantica) -> None:
    assert list(add.enqueue(1).logs(follow=True)) == []
    with pytest.raises(JobNotEnded):
        list(add.using(delay=5).enqueue(1).logs(follow=True))


# --- looking ----------------------------------------------------------------------------------------------------------


def test_what_was_enqueued(semantica: InlineSemantica) -> None:
    add.enqueue(1)
    add.enqueue(1, b=7)
    asum.enqueue(Path("x"))
    assert len(semantica.assert_enqueued(add, a=1)) == 2
    semantica.assert_enqueued(add, count=1, b=2)  # a default counts as given
    semantica.assert_enqueued(asum, paths=(Path("x"),))
    semantica.assert_enqueued(parent, count=0)
    with pytest.raises(AssertionError) as wrong:
        semantica.assert_enqueued(add, a=2)
    text = str(wrong.value)
    assert text.startswith(f"0 jobs {add.name}(a=2) were enqueued, expected one or more; enqueued were:")
    assert f"{add.name}(a=1, b=7)  QUEUED" in text
    with pytest.raises(AssertionError, match=r"2 jobs .* were enqueued, expected 1;"):
        semantica.assert_enqueued(add, count=1)


def test_jobs_are_found_by_task_and_state(semantica: InlineSemantica) -> None:
    add.enqueue_many([(number,) for number in range(250)])
    asum.enqueue()
    assert [job.payload["a"] for job in semantica.jobs(task=add)] == list(range(250))
    assert semantica.jobs(state=["RUNNING", "DONE"]) == []
    assert [job.job_type for job in semantica.jobs(task="sum-of-paths", state="QUEUED")] == ["sum-of-paths"]


def test_every_app_and_thread_enqueues_here_while_it_lasts(tmp_path: Path) -> None:
    other = Semantica(home=tmp_path / "elsewhere", autostart=False)

    @other.task(name="other")
    def elsewhere() -> int:
        return 7

    with inline(tmp_path) as semantica:
        thread = threading.Thread(target=elsewhere.enqueue)
        thread.start()
        thread.join()
        assert [job.result for job in semantica.run_pending()] == [7]
    with pytest.raises(DaemonUnavailable):
        elsewhere.enqueue()


def test_a_forked_child_is_told_that_it_is_alone(semantica: InlineSemantica) -> None:
    reading, writing = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # Python 3.12 warns of threads, of which there are some here
        child = os.fork()
    if not child:
        try:
            add.enqueue(1)
        except BaseException as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert b"a forked child cannot reach the inline engine of its test" in pipe.read()
    os.waitpid(child, 0)


def test_nothing_is_left(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    with inline(tmp_path):
        add.enqueue(1).result()
        asum.enqueue().result()
    assert set(threading.enumerate()) == threads
