"""Stopping: waiting jobs end at once, running ones get a reason that may only be raised."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from semtask.model import outcome as outcomes
from semtask.model.state import RANK, EndCause, State, StopReason, may_raise
from semtask.store.requests import Running
from tests.store.harness import NOW, Harness, new_id, new_job, seen


@pytest.mark.parametrize("run_at", [None, NOW + 9])
async def test_a_waiting_job_is_cancelled_at_once(harness: Harness, run_at: int | None) -> None:
    async with harness.open() as opened:
        await opened.insert(job := new_job(run_at=run_at))
        before = await opened.job(job.job_id)
        stopped = await opened.cancel(job_id=job.job_id, now=NOW + 3)
        assert (stopped.found, stopped.ended, stopped.stopping, stopped.final_state) == (1, 1, [], None)
        after = await opened.job(job.job_id)
        assert (after.state, after.end_cause, after.finished_at) == (State.CANCELLED, EndCause.CANCELLED, NOW + 3)
        assert await opened.counts() == {"CANCELLED": 1}
        assert seen(opened.commits[-1]) == [(job.job_id, before.state, State.CANCELLED)]
        assert await opened.claim(now=NOW + 99) == []
        assert (await opened.store.promote(NOW + 99, 10)).count == 0


async def test_a_running_job_gets_the_reason_and_keeps_running(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job(grace_ms=700))
        [job] = await opened.claim()
        stopped = await opened.cancel(job_id=job.job_id)
        assert stopped.stopping == [Running(job_id=job.job_id, claim_no=1, reason=StopReason.CANCEL, grace_ms=700)]
        assert (stopped.found, stopped.ended, stopped.final_state) == (1, 0, None)
        after = await opened.job(job.job_id)
        assert (after.state, after.stop_reason, after.stop_grace_ms) == (State.RUNNING, StopReason.CANCEL, 700)
        [change] = opened.commits[-1]
        assert (change.before, change.after, change.stop_reason) == (State.RUNNING, State.RUNNING, StopReason.CANCEL)
        assert await opened.counts() == {"RUNNING": 1}


async def test_a_finished_job_is_left_alone(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job())
        [job] = await opened.claim()
        await opened.finish(job)
        done = await opened.job(job.job_id)
        stopped = await opened.cancel(job_id=job.job_id)
        assert (stopped.found, stopped.ended, stopped.stopping) == (1, 0, [])
        assert stopped.final_state is State.DONE
        assert await opened.job(job.job_id) == done
        assert opened.commits[-1] == []


async def test_an_unknown_job(harness: Harness) -> None:
    async with harness.open() as opened:
        stopped = await opened.cancel(job_id=new_id())
        assert (stopped.found, stopped.ended, stopped.stopping, stopped.final_state) == (0, 0, [], None)


@pytest.mark.parametrize("field", ["tag", "chain_group_id"])
async def test_all_jobs_of_a_tag_or_group(harness: Harness, field: str) -> None:
    x: Any = {field: "x"}
    async with harness.open() as opened:
        await opened.insert(*(new_job(**x) for _ in range(3)))
        done, running, _ = await opened.claim(limit=3)
        await opened.finish(done)
        waiting = [new_job(**x), new_job(**x, run_at=NOW + 9)]
        await opened.insert(*waiting, other := new_job(**{field: "y"}))
        stopped = await opened.cancel(**x)
        assert (stopped.found, stopped.ended, stopped.final_state) == (5, 2, None)
        assert stopped.stopping[0].job_id == running.job_id
        assert len(stopped.stopping) == 2
        assert (await opened.job(other.job_id)).state is State.QUEUED
        assert await opened.counts() == {"DONE": 1, "RUNNING": 2, "CANCELLED": 2, "QUEUED": 1}


@pytest.mark.parametrize("reason", [r for r in StopReason if r is not StopReason.CANCEL])
async def test_only_cancel_ends_waiting_jobs(harness: Harness, reason: StopReason) -> None:
    async with harness.open() as opened:
        await opened.insert(job := new_job())
        stopped = await opened.stop(reason, job_id=job.job_id)
        assert (stopped.found, stopped.ended, stopped.stopping) == (1, 0, [])
        assert (await opened.job(job.job_id)).state is State.QUEUED


@pytest.mark.parametrize(("first", "second"), list(itertools.product(StopReason, StopReason)))
async def test_a_reason_may_only_be_raised(harness: Harness, first: StopReason, second: StopReason) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job())
        [job] = await opened.claim()
        await opened.stop(first, job_id=job.job_id)
        stopped = await opened.stop(second, job_id=job.job_id)
        winner = second if may_raise(first, second) else first
        assert RANK[winner] == max(RANK[first], RANK[second])
        assert stopped.stopping[0].reason is winner
        assert (await opened.job(job.job_id)).stop_reason is winner
        assert len(opened.commits[-1]) == int(winner is not first)


@pytest.mark.parametrize(
    ("asked", "graces"),
    [
        ([None, 10_000, None], [5000, 5000, 5000]),
        ([100, None, 50], [100, 100, 50]),
        ([8000, None, 0], [8000, 5000, 0]),
    ],
)
async def test_a_grace_may_only_get_shorter(harness: Harness, asked: list[int | None], graces: list[int]) -> None:
    """Also when the reason is CANCEL already."""
    async with harness.open() as opened:
        await opened.insert(new_job(grace_ms=5000))
        [job] = await opened.claim()
        for wish, grace in zip(asked, graces, strict=True):
            stopped = await opened.cancel(job_id=job.job_id, grace_ms=wish)
            assert stopped.stopping[0].grace_ms == grace
            assert (await opened.job(job.job_id)).stop_grace_ms == grace


async def test_a_committed_cancel_decides_the_end(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job())
        [job] = await opened.claim()
        await opened.cancel(job_id=job.job_id)
        await opened.finish(job, outcomes.of_command(0))
        after = await opened.job(job.job_id)
        assert (after.state, after.end_cause, after.exit_code) == (State.CANCELLED, EndCause.CANCELLED, 0)
        assert after.stop_reason is StopReason.CANCEL


@pytest.mark.parametrize("selector", [{}, {"tag": "a", "chain_group_id": "b"}])
async def test_exactly_one_selector(harness: Harness, selector: Any) -> None:
    async with harness.open() as opened:
        with pytest.raises(ValueError, match="exactly one"):
            await opened.cancel(**selector)
