"""Claiming, and the end of an attempt."""

from __future__ import annotations

import msgspec
import pytest

from semtask.model import outcome as outcomes
from semtask.model.job import ClaimFacts, OnDuplicate, OnInterrupt, ProcessIdentity
from semtask.model.outcome import FailureClass, Outcome
from semtask.model.retry import decide
from semtask.model.state import FINAL, EndCause, State, StopReason
from semtask.store.requests import ClaimRequest
from tests.store.harness import IN_PROCESS, NOW, SUBPROCESS, Harness, facts, new_job, seen

PROCESS = ProcessIdentity(boot_id="boot", pid_namespace=4026531836, pid=4711, start_ticks=99, pidfs_inode=1 << 40)
FAILED = outcomes.of_command(3 << 8, log_bytes=12)


async def test_best_first_over_all_queues_within_their_slots(harness: Harness) -> None:
    jobs = [
        new_job(queue=queue, priority=priority)
        for queue, priority in [("a", 0), ("b", 5), ("a", 5), ("b", 0), ("a", -1), ("c", 9), ("b", 5), ("a", 0)]
    ]
    async with harness.open() as opened:
        await opened.insert(*jobs)
        claimed = await opened.claim({"a": 3, "b": 2, "d": 5})
        assert [job.job_id for job in claimed] == [jobs[n].job_id for n in (1, 2, 6, 0, 7)]
        assert [job.job_id for job in await opened.claim(["a", "b", "c"], limit=2)] == [jobs[5].job_id, jobs[3].job_id]
        assert await opened.claim({"a": 0, "b": 3}) == []
        assert [job.job_id for job in await opened.claim(["a"])] == [jobs[4].job_id]


async def test_a_claim_fills_the_row_and_is_told(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job())
        [job] = await opened.claim(now=NOW + 7)
        assert (job.state, job.claim_no, job.started_at, job.node_id) == (State.RUNNING, 1, NOW + 7, "node")
        assert job.claim == facts(job.job_id, 1)
        assert await opened.job(job.job_id) == job
        assert await opened.store.running() == [job]
        assert await opened.counts() == {"RUNNING": 1}
        change = opened.commits[-1][0]
        assert seen([change]) == [(job.job_id, State.QUEUED, State.RUNNING)]
        assert change.claim_no == 1


async def test_only_jobs_of_the_mode(harness: Harness) -> None:
    task, command = new_job(execution_mode=IN_PROCESS), new_job()
    async with harness.open() as opened:
        await opened.insert(task, command)
        assert [job.job_id for job in await opened.claim(mode=SUBPROCESS)] == [command.job_id]
        assert [job.job_id for job in await opened.claim(mode=IN_PROCESS)] == [task.job_id]


async def test_scheduled_jobs_are_not_claimed(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job(run_at=NOW + 1))
        assert await opened.claim(now=NOW + 10) == []


async def test_a_paused_queue_accepts_but_gives_nothing(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.store.configure_queue("a", paused=True)
        await opened.insert(new_job(queue="a"), other := new_job(queue="b"))
        assert [job.job_id for job in await opened.claim(["a", "b"])] == [other.job_id]
        await opened.store.configure_queue("a", paused=False)
        assert len(await opened.claim(["a", "b"])) == 1


async def test_one_job_of_a_subject_runs_and_the_next_best_take_its_place(harness: Harness) -> None:
    lane = [new_job(subject_key="s", on_duplicate=OnDuplicate.AFTER, priority=9) for _ in range(3)]
    other_type = new_job(subject_key="s", job_type="other", priority=8)
    free, elsewhere = new_job(priority=7), new_job(queue="b", priority=6)
    async with harness.open() as opened:
        await opened.insert(*lane, other_type, free, elsewhere)
        claimed = await opened.claim(["default", "b"], limit=3)
        assert [job.job_id for job in claimed] == [lane[0].job_id, other_type.job_id, free.job_id]
        assert [job.job_id for job in await opened.claim(["default", "b"])] == [elsewhere.job_id]
        await opened.finish(claimed[0])
        assert [job.job_id for job in await opened.claim(["default", "b"])] == [lane[1].job_id]


async def test_facts_that_fail_claim_nothing(harness: Harness) -> None:
    calls: list[tuple[str, int]] = []

    def broken(job_id: str, claim_no: int) -> ClaimFacts:
        calls.append((job_id, claim_no))
        if len(calls) > 1:
            raise RuntimeError("no boot id")
        return facts(job_id, claim_no)

    async with harness.open() as opened:
        await opened.insert(first := new_job(), second := new_job())
        with pytest.raises(RuntimeError, match="no boot id"):
            await opened.store.claim(
                ClaimRequest(mode=SUBPROCESS, queues={"default": 9}, limit=9, now=NOW, node_id="n", facts=broken)
            )
        assert calls == [(first.job_id, 1), (second.job_id, 1)]
        assert await opened.counts() == {"QUEUED": 2}
        assert len(opened.changes) == 2


async def test_the_process_of_the_present_claim_only(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job())
        [job] = await opened.claim()
        assert await opened.store.record_process(job.job_id, 1, PROCESS)
        assert not await opened.store.record_process(job.job_id, 2, PROCESS)
        assert (await opened.job(job.job_id)).process == PROCESS
        assert await opened.store.record_kill_failed(job.job_id, 1, NOW + 1)
        assert await opened.store.record_kill_failed(job.job_id, 1, NOW + 2)
        assert not await opened.store.record_kill_failed(job.job_id, 3, NOW)
        assert (await opened.job(job.job_id)).kill_failed_at == NOW + 1
        await opened.finish(job)
        assert not await opened.store.record_process(job.job_id, 1, PROCESS)
        assert not await opened.store.record_kill_failed(job.job_id, 1, NOW)
        [attempt] = await opened.store.attempts(job.job_id)
        assert attempt.pid == PROCESS.pid


OUTCOMES = {
    "success": outcomes.success(exit_code=0),
    "exit code": FAILED,
    "signal": outcomes.of_command(9),
    "spawn failed": outcomes.spawn_failed("no such program"),
    "no room": outcomes.no_room("EAGAIN"),
    "never ran": outcomes.never_ran("the daemon died first"),
    "interrupted": outcomes.interrupted("the daemon died"),
    "lost": outcomes.lost("the shim is gone"),
}


@pytest.mark.parametrize("stop", [None, *StopReason])
@pytest.mark.parametrize("on_interrupt", list(OnInterrupt))
@pytest.mark.parametrize("max_attempts", [1, 3])
@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES.keys())
async def test_an_end_is_what_decide_says(
    harness: Harness, outcome: Outcome, max_attempts: int, on_interrupt: OnInterrupt, stop: StopReason | None
) -> None:
    """The row, the attempt, the counters and the change, for every way to end."""
    async with harness.open() as opened:
        await opened.insert(
            new_job(max_attempts=max_attempts, on_interrupt=on_interrupt, retry_on_crash=max_attempts > 1)
        )
        await opened.claim()
        [claimed] = await opened.store.running()
        if stop:
            await opened.stop(stop, job_id=claimed.job_id)
        before = await opened.job(claimed.job_id)
        expected = decide(before, outcome, jitter=1.1)
        finished = await opened.finish(before, outcome, now=NOW + 50, jitter=1.1)
        after = await opened.job(before.job_id)
        attempts = await opened.store.attempts(before.job_id)
        assert await opened.counts() == {expected.state.value: 1}
        change = opened.changes[-1]

    assert finished.decision == expected
    final = expected.state in FINAL
    assert after.state is expected.state
    assert (after.finished_at, after.end_cause) == ((NOW + 50, expected.end_cause) if final else (None, None))
    assert after.stop_reason is (stop if final else None)
    assert (after.exit_code, after.signal, after.error) == (outcome.exit_code, outcome.signal, expected.error)
    assert after.run_at == (NOW + 50 + expected.delay_ms if after.state is State.SCHEDULED else None)
    for counter in ("attempts", "failures", "crashes", "interruptions"):
        assert getattr(after, counter) == getattr(expected, counter)
    assert seen([change]) == [(before.job_id, State.RUNNING, expected.state)]
    assert (change.claim_no, change.end_cause, change.run_at) == (1, after.end_cause, after.run_at)
    assert len(attempts) == int(outcome.executed)
    for attempt in attempts:
        assert (attempt.claim_no, attempt.started_at, attempt.finished_at) == (1, NOW, NOW + 50)
        assert (attempt.end_cause, attempt.stop_reason) == (expected.end_cause, stop)
        assert (attempt.exit_code, attempt.signal, attempt.log_bytes) == (
            outcome.exit_code,
            outcome.signal,
            outcome.log_bytes,
        )


async def test_a_late_report_changes_nothing(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job(on_interrupt=OnInterrupt.REQUEUE))
        [first] = await opened.claim()
        await opened.finish(first, outcomes.interrupted("the daemon died"))
        assert (await opened.finish(first)).decision is None  # while it waits
        [second] = await opened.claim()
        assert second.claim_no == 2
        told = len(opened.changes)
        assert (await opened.finish(first)).decision is None  # while the next claim runs
        assert await opened.job(second.job_id) == second
        await opened.finish(second, FAILED)
        done = await opened.job(second.job_id)
        assert (await opened.finish(second)).decision is None  # after the end
        assert (await opened.finish(first)).decision is None
        unknown = msgspec.structs.replace(first, job_id=new_job().job_id)
        assert (await opened.finish(unknown)).decision is None
        assert await opened.job(second.job_id) == done
        assert len(opened.changes) == told + 1
        assert [attempt.claim_no for attempt in await opened.store.attempts(first.job_id)] == [1, 2]


async def test_the_next_claim_starts_clean(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job(on_interrupt=OnInterrupt.REQUEUE))
        [job] = await opened.claim()
        await opened.store.record_process(job.job_id, 1, PROCESS)
        await opened.store.record_kill_failed(job.job_id, 1, NOW)
        await opened.stop(StopReason.SHUTDOWN, job_id=job.job_id)
        await opened.finish(job, outcomes.interrupted("shutdown", signal=15))
        waiting = await opened.job(job.job_id)
        assert (waiting.state, waiting.signal, waiting.stop_reason) == (State.QUEUED, 15, None)
        [again] = await opened.claim(now=NOW + 9)
        assert (again.claim_no, again.attempts, again.started_at) == (2, 1, NOW + 9)
        assert (again.process, again.kill_failed_at, again.signal, again.error) == (None, None, None, None)
        assert again.claim == facts(job.job_id, 2)


async def test_given_back_means_that_only_claim_no_moved(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(job := new_job())
        before = await opened.job(job.job_id)
        [claimed] = await opened.claim()
        await opened.finish(claimed, outcomes.no_room("EAGAIN"))
        after = await opened.job(job.job_id)
        assert await opened.store.attempts(job.job_id) == []
    kept = {"node_id": "node", "claim": claimed.claim, "error": "EAGAIN"}
    assert after == msgspec.structs.replace(before, claim_no=1, **kept)


async def test_a_task_that_succeeds_needs_no_attempt_row(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job(execution_mode=IN_PROCESS), new_job(execution_mode=IN_PROCESS))
        good, bad = await opened.claim(mode=IN_PROCESS)
        await opened.finish(good)
        await opened.finish(bad, Outcome(end_cause=EndCause.EXCEPTION, failure=FailureClass.HANDLER, error="boom"))
        assert await opened.store.attempts(good.job_id) == []
        assert [a.error for a in await opened.store.attempts(bad.job_id)] == ["boom"]
