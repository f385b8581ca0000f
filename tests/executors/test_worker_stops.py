"""Jobs that are stopped, and jobs that are taken back because another one takes its time."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from semtask.model.job import Job
from semtask.model.outcome import FailureClass
from semtask.model.state import EndCause, StopReason
from tests.executors.rig import until, with_nonce
from tests.executors.task_rig import ASYNC, SYNC, TaskRig, task_rig

# Says in a file that it runs.
LOUD = (
    SYNC
    + """
def say(word):
    open(word, "w").close()
@app.task
def loud_loop() -> None:
    say("runs")
    while True:
        time.sleep(0.01)
@app.task
def loud_stuck(seconds: float) -> None:
    say("runs")
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))
@app.task
def in_c() -> None:
    while True:
        try:
            say("runs")
            sum(range(10**15))  # holds the GIL and looks at no signal
        except BaseException:  # it came before the call
            pass
@app.task
def deaf() -> None:
    while True:
        try:
            say("runs")
            time.sleep(60)
        except BaseException:
            pass
@app.task
def late_by(seconds: float) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            say("runs")
            time.sleep(until - time.monotonic())
        except BaseException:
            pass
    return "at last"
@app.task
def misses_the_first_signal() -> None:
    ours = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    say("runs")
    while not os.path.exists("signalled"):
        time.sleep(0.01)
    signal.signal(signal.SIGUSR1, ours)
    time.sleep(60)
@app.task
def late() -> str:
    say("runs")
    try:
        time.sleep(60)
    except BaseException:
        return "enough"
"""
)


def stop(r: TaskRig, job: Job, grace_ms: int, reason: StopReason = StopReason.CANCEL) -> None:
    r.executor.stop(job.job_id, job.claim_no, reason, grace_ms)


def test_a_sync_loop_is_interrupted_and_its_worker_lives_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            job = r.job("loud_loop")
            nonce = (await r.runs(job)).nonce
            before = with_nonce(nonce)
            began = time.monotonic()
            stop(r, job, 20_000)
            end = (await r.end(job)).outcome
            assert time.monotonic() - began < 5
            assert end.stopped
            assert end.end_cause is EndCause.INTERRUPTED
            assert "in loud_loop" in r.log_of(job)
            assert with_nonce(nonce) == before
            assert (await r.taker("noop")).facts.nonce == nonce
            assert (await r.run("noop")).outcome.failure is None

    asyncio.run(main())


def test_a_task_that_missed_the_signal_is_interrupted_all_the_same(tmp_path: Path) -> None:
    """As when it comes just before a system call blocks."""

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            job = r.job("misses_the_first_signal")
            await r.runs(job)
            stop(r, job, 60_000)
            Path(r.status().app.directory, "signalled").touch()
            end = (await r.end(job)).outcome
            assert end.stopped
            assert end.error is None or "killed" not in end.error
            assert "in misses_the_first_signal" in r.log_of(job)
            assert (await r.run("noop")).outcome.failure is None

    asyncio.run(main())


@pytest.mark.parametrize("task", ["in_c", "deaf"])
def test_what_cannot_be_interrupted_is_killed_after_its_grace(tmp_path: Path, task: str) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            job = r.job(task)
            behind = r.job("noop")
            nonce = (await r.runs(job, behind)).nonce
            began = time.monotonic()
            stop(r, job, 400)
            end = (await r.end(job)).outcome
            assert 0.35 < time.monotonic() - began < 10
            assert end.stopped
            assert end.signal in {signal.SIGTERM, signal.SIGKILL}
            assert end.error == "its worker was killed: the job did not end within its grace of 400 ms"
            assert with_nonce(nonce) == []
            assert (await r.end(behind)).outcome.failure is FailureClass.NEVER_RAN

    asyncio.run(main())


def test_a_slow_worker_has_the_time_to_write_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semtask.workers.worker._SHOWN_WITHIN_S", 60)

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            job = r.job("in_c")
            await r.runs(job)
            [worker] = r.pids()
            os.kill(worker, signal.SIGSTOP)
            stop(r, job, 100)
            await until(lambda: pending(worker, signal.SIGUSR2), "it is asked where it is")
            await asyncio.sleep(0.2)  # it is that slow
            os.kill(worker, signal.SIGCONT)
            assert (await r.end(job)).outcome.stopped
            assert "in in_c" in r.log_of(job)

    asyncio.run(main())


def pending(pid: int, number: int) -> bool:
    [mask] = re.findall(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) & 1 << number - 1)


def test_a_second_stop_can_only_shorten_the_grace(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            job = r.job("in_c")
            await r.runs(job)
            began = time.monotonic()
            stop(r, job, 60_000, StopReason.SHUTDOWN)
            stop(r, job, 300)
            stop(r, job, 60_000)
            assert (await r.end(job)).outcome.stopped
            assert 0.25 < time.monotonic() - began < 10

    asyncio.run(main())


def test_a_result_after_a_stop_is_a_result(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            job = r.job("late")
            await r.runs(job)
            stop(r, job, 20_000)
            end = (await r.end(job)).outcome
            assert (end.failure, end.stopped, end.result) == (None, False, '"enough"')

    asyncio.run(main())


def test_a_job_that_has_not_begun_is_recalled(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            # Sent while the worker is not scheduled: none of them begins.
            first, second = r.job("loud_loop"), r.job("noop")
            worker = (await r.taker("noop")).facts
            (pid,) = with_nonce(worker.nonce)
            os.kill(pid, signal.SIGSTOP)
            await r.start(first, second)
            stop(r, first, 20_000)
            for job in (first, second):
                assert (await r.end(job)).outcome.failure is FailureClass.NEVER_RAN
            os.kill(pid, signal.SIGCONT)
            assert (await r.run("noop", n=3)).outcome.result == "3"
            assert not (tmp_path / "project-app" / "runs").exists()

    asyncio.run(main())


def test_async_jobs_are_cancelled_one_by_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(ASYNC))
            jobs = [r.job("asleep", seconds=1.5) for _ in range(3)]
            facts = await r.start(*jobs)
            stop(r, jobs[1], 20_000)
            end = (await r.end(jobs[1])).outcome
            assert end.stopped
            for job in (jobs[0], jobs[2]):
                assert (await r.end(job)).outcome.result == '"slept"'
            assert len(with_nonce(facts.nonce)) == 1

    asyncio.run(main())


def test_the_others_of_a_killed_async_worker_are_displaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(ASYNC))
            others = [r.job("asleep", seconds=60) for _ in range(3)]
            stuck = r.job("astuck", seconds=60)
            facts = await r.start(*others, stuck)
            await until((tmp_path / "project-app" / "runs").exists, "the code of the job")
            stop(r, stuck, 300, StopReason.TIMEOUT)
            end = (await r.end(stuck)).outcome
            assert end.stopped
            assert end.failure is FailureClass.CRASH
            for job in others:
                assert (await r.end(job)).outcome.failure is FailureClass.DISPLACED
            assert with_nonce(facts.nonce) == []

    asyncio.run(main())


def test_what_waits_behind_a_slow_job_is_taken_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            slow = r.job("loud_stuck", seconds=1.5)  # it holds the GIL: nothing in the worker can answer
            waiting = [r.job("noop", n=n) for n in range(5)]
            began = time.monotonic()
            facts = await r.start(slow, *waiting)
            for job in waiting:
                assert (await r.end(job)).outcome.failure is FailureClass.NEVER_RAN
            assert time.monotonic() - began < 1
            assert slow.job_id not in r.ends
            # They run in another worker, and none of them in this one.
            again = await r.taker("noop")
            assert again.facts.nonce != facts.nonce
            await r.end(slow)
            r.executor.start(facts.nonce, [fresh := r.job("noop", n=9)])
            assert (await r.end(fresh)).outcome.result == "9"
            assert set(r.ends) == {slow.job_id, fresh.job_id, *(job.job_id for job in waiting)}

    asyncio.run(main())


def test_a_worker_that_begins_what_was_taken_back_is_killed(tmp_path: Path) -> None:
    """`steals` takes no token."""

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.scripted("steals"))
            jobs = [r.job("task"), r.job("task")]
            facts = await r.start(*jobs)
            assert (await r.end(jobs[1])).outcome.failure is FailureClass.NEVER_RAN
            await until(lambda: with_nonce(facts.nonce) == [], "its end")
            assert (await r.end(jobs[0])).outcome.failure is not None

    asyncio.run(main())


def test_a_worker_that_cannot_be_killed_is_told_of_and_keeps_its_jobs(tmp_path: Path) -> None:
    """No process outlives SIGKILL at a test's wish, so the word of the shim is forged."""

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            job = r.job("loud_stuck", seconds=60)
            nonce = (await r.runs(job)).nonce
            requests = {request.about["worker"]: number for number, request in r.spawner._requested.items()}
            os.write(r.spawner._notices_in, f"{requests[nonce]} stuck\n{requests[nonce]} stuck\n".encode())
            await until(lambda: r.kill_failed, "the word of the shim")
            assert job.job_id not in r.ends
            stop(r, job, 0)
            assert (await r.end(job)).outcome.stopped
            assert r.kill_failed == [job.job_id]

    asyncio.run(main())


def test_a_job_that_ends_at_the_last_moment_costs_the_next_one_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semtask.workers.worker._SHOW_S", 1.0)

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            job = r.job("late_by", seconds=0.6)
            nonce = (await r.runs(job)).nonce
            stop(r, job, 100)
            assert (await r.end(job)).outcome.result == '"at last"'
            beside = r.job("sleep", seconds=1.5)
            assert (await r.start(beside)).nonce == nonce
            assert (await r.end(beside)).outcome.failure is None

    asyncio.run(main())


@contextmanager
def no_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for standard in (0, 1, 2):
        os.fstat(standard)
    # All below are open and stay so. Whatever else is open now may be closed meanwhile, and would be available again.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_stop_needs_no_descriptor(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(LOUD))
            job = r.job("loud_loop")
            nonce = (await r.runs(job)).nonce
            with no_descriptors():
                stop(r, job, 100)
                await asyncio.sleep(0.5)  # nothing can be looked at meanwhile
            end = (await r.end(job)).outcome
            assert end.stopped
            assert end.error == "its worker was killed: the job did not end within its grace of 100 ms"
            assert with_nonce(nonce) == []

    asyncio.run(main())
