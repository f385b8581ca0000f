"""Workers that die: each job that they had ends as what happened to it, and as nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from semtask.model.outcome import FailureClass, Outcome
from semtask.model.state import EndCause
from semtask.workers import worker
from tests.executors.rig import alive, until, with_nonce
from tests.executors.task_rig import ASYNC, SYNC, task_rig


def is_crash(outcome: Outcome) -> bool:
    return (outcome.end_cause, outcome.failure) == (EndCause.WORKER_CRASH, FailureClass.CRASH)


def test_a_segfault_ends_its_job_and_gives_back_what_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RECALL_AFTER_S", 60)  # on a busy machine it would be given back itself

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            jobs = [r.job("noop"), r.job("segfault"), r.job("noop"), r.job("noop")]
            await r.start(*jobs)
            before, crashed, *after = [(await r.end(job)).outcome for job in jobs]
            assert before.failure is None
            assert is_crash(crashed)
            assert crashed.signal == signal.SIGSEGV
            assert crashed.error == (
                "its worker was ended by signal 11 (SIGSEGV): Fatal Python error: Segmentation fault"
            )
            assert "in segfault" in (crashed.exception or "")
            assert [end.failure for end in after] == [FailureClass.NEVER_RAN] * 2
            log = r.log_of(jobs[1])
            assert "CRITICAL its worker was ended by signal 11" in log
            assert 'jobs.py", line' in log
            assert "in segfault" in log
            assert crashed.log_bytes == len(log)
            assert r.log_of(jobs[2]) == ""

    asyncio.run(main())


@pytest.mark.parametrize(
    ("task", "arguments", "error", "number", "code"),
    [
        ("leave", {"code": 0}, "its worker ended with exit code 0 and without a result", None, 0),
        ("leave", {"code": 7}, "its worker ended with exit code 7", None, 7),
        ("crash", {"number": 9}, "its worker was ended by signal 9 (SIGKILL)", 9, None),
    ],
)
def test_exit_codes_and_signals(
    tmp_path: Path, task: str, arguments: dict[str, int], error: str, number: int | None, code: int | None
) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            end = (await r.run(task, **arguments)).outcome
            assert is_crash(end)
            assert (end.error, end.signal, end.exit_code) == (error, number, code)
            assert (await r.run("noop")).outcome.failure is None

    asyncio.run(main())


def test_a_crash_is_told_when_every_process_of_it_is_gone(tmp_path: Path) -> None:
    code = SYNC + (
        "@app.task\ndef child_then_crash() -> None:\n"
        "    subprocess.Popen(['sleep', '300'], start_new_session=True)\n    os.abort()\n"
    )

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(code))
            job = r.job("child_then_crash")
            facts = await r.start(job)
            assert is_crash((await r.end(job)).outcome)
            assert with_nonce(facts.nonce) == []

    asyncio.run(main())


def test_a_result_that_was_sent_counts_however_the_worker_died(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.scripted("result-then-death"))
            first, second = r.job("task"), r.job("task")
            await r.start(first, second)
            end = (await r.end(first)).outcome
            assert (end.failure, end.result) == (None, "1")
            assert (await r.end(second)).outcome.failure is FailureClass.NEVER_RAN

    asyncio.run(main())


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ("torn", r"its worker was ended by signal 9 (SIGKILL)"),
        ("garbage-later", "its worker was killed: the worker sent what is no frame"),
        ("ends-others", "its worker was killed: it ended job 01890a5d-ac96-774b-bcce-b302099a80fe, which it does not"),
        ("closes", "its worker was killed: it closed its connection to the daemon and went on"),
    ],
)
def test_a_worker_that_breaks_the_protocol_is_killed(tmp_path: Path, behaviour: str, error: str) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.scripted(behaviour))
            first, second = r.job("task"), r.job("task")
            facts = await r.start(first, second)
            end = (await r.end(first)).outcome
            assert is_crash(end)
            assert (end.error or "").startswith(error)
            assert (await r.end(second)).outcome.failure is FailureClass.NEVER_RAN
            assert with_nonce(facts.nonce) == []

    asyncio.run(main())


def test_a_job_whose_token_was_not_taken_never_ran(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.scripted("unbegun"))
            jobs = [r.job("task"), r.job("task")]
            await r.start(*jobs)
            for job in jobs:
                assert (await r.end(job)).outcome.failure is FailureClass.NEVER_RAN

    asyncio.run(main())


def test_the_async_job_that_brought_its_worker_down_is_known(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(ASYNC))
            others = [r.job("asleep", seconds=60) for _ in range(3)]
            culprit = r.job("acrash")
            facts = await r.start(*others)
            assert facts.worker is not None
            r.executor.start(facts.worker, [culprit])
            end = (await r.end(culprit)).outcome
            assert is_crash(end)
            assert end.signal == signal.SIGSEGV
            for job in others:
                assert (await r.end(job)).outcome.failure is FailureClass.DISPLACED

    asyncio.run(main())


@pytest.mark.parametrize("behaviour", ["mark", "torn"])
def test_without_a_mark_every_async_job_has_crashed(tmp_path: Path, behaviour: str) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.scripted(behaviour))
            jobs = [r.job("atask") for _ in range(3)]
            worker = (await r.taker("atask")).facts.worker
            assert worker is not None
            if behaviour == "torn":  # it waits for a token, and async jobs have none
                r.executor.start(worker, jobs)
                await until(lambda: len(r.pids()) == 2, "a new spare")
                os.kill(next(w.pid for w in r.executor.workers() if w.worker == worker and w.pid), signal.SIGKILL)
            else:
                r.executor.start(worker, jobs)
            ends = [(await r.end(job)).outcome.failure for job in jobs]
            crash, displaced = FailureClass.CRASH, FailureClass.DISPLACED
            assert ends == ([crash] * 3 if behaviour == "torn" else [displaced, crash, displaced])

    asyncio.run(main())


def test_processes_that_a_job_leaves_are_gone_before_its_end_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            job, behind = r.job("child"), r.job("noop")
            facts = await r.start(job, behind)
            end = (await r.end(job)).outcome
            assert end.failure is None
            assert end.result is not None
            assert not alive(int(end.result))
            assert with_nonce(facts.nonce) == []
            assert (await r.end(behind)).outcome.failure is FailureClass.NEVER_RAN

    asyncio.run(main())


def test_leftovers_of_a_worker_that_cannot_be_interrupted(tmp_path: Path) -> None:
    """The scripted one goes on, whatever it said; and what it left is in a session of its own."""

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.scripted("leftovers"))
            job = r.job("task")
            await r.start(job)
            assert (await r.end(job)).outcome.result == "1"
            assert not alive(int((tmp_path / "child").read_text()))

    asyncio.run(main())


def test_a_worker_that_is_killed_while_idle_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            await r.run("noop")
            await until(lambda: r.pids("idle"), "an idle worker")
            victims = set(r.pids("idle"))
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            await until(lambda: set(r.pids("idle")) - victims, "new workers")
            assert (await r.run("noop")).outcome.failure is None

    asyncio.run(main())


def test_the_shim_of_a_worker_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            job = r.job("sleep", seconds=60)
            facts = await r.runs(job)
            folder = r.attempts.attempt((facts.worker or "").removesuffix(".1"), 1)
            started = folder.started()
            assert started is not None
            assert started.shim is not None
            os.kill(started.shim.pid, signal.SIGKILL)
            end = (await r.end(job)).outcome
            assert is_crash(end)
            assert end.error == "its worker is gone: the shim that watched it was ended by signal 9"
            assert with_nonce(facts.nonce) == []

    asyncio.run(main())
