"""What waits too long ends by itself; and claims by class."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from semtask.model import outcome as outcomes
from semtask.model.job import OnInterrupt, QueueClass
from semtask.model.schedule import expires_at
from semtask.model.state import EndCause, State, StopReason
from semtask.store.requests import ClaimRequest
from tests.store.harness import NOW, SUBPROCESS, Harness, facts, new_job, seen


@pytest.mark.parametrize(
    ("fields", "since"),
    [
        ({}, NOW),
        ({"run_at": NOW - 100}, NOW),
        ({"run_at": NOW + 100}, NOW + 100),
        ({"run_at": NOW + 100, "created_at": NOW + 50}, NOW + 100),
    ],
)
async def test_ttl_runs_from_the_moment_a_job_may_run(harness: Harness, fields: Any, since: int) -> None:
    async with harness.open() as opened:
        await opened.insert(job := new_job(ttl_ms=30, **fields))
        if job.run_at is not None and job.run_at > NOW:
            assert await opened.store.next_expiry() is None  # a delayed job has all its time before it
            assert (await opened.store.expire(since + 999, 10)).count == 0
            await opened.store.promote(since, 10)
        assert await opened.store.next_expiry() == since + 30
        assert opened.changes[-1].expires_at == since + 30
        assert (await opened.store.expire(since + 29, 10)).next_at == since + 30
        assert (await opened.job(job.job_id)).state is State.QUEUED
        expired = await opened.store.expire(since + 30, 10)
        assert (expired.count, expired.next_at) == (1, None)
        row = await opened.job(job.job_id)
        assert (row.state, row.end_cause, row.finished_at) == (State.SKIPPED_TTL, EndCause.TTL, since + 30)
        assert seen(opened.commits[-1]) == [(job.job_id, State.QUEUED, State.SKIPPED_TTL)]
        assert opened.commits[-1][0].end_cause is EndCause.TTL
        assert await opened.counts() == {"SKIPPED_TTL": 1}


@pytest.mark.parametrize("state", [State.SCHEDULED, State.QUEUED])
async def test_a_deadline_ends_all_that_waits(harness: Harness, state: State) -> None:
    async with harness.open() as opened:
        await opened.insert(job := new_job(deadline=NOW + 50, run_at=NOW + 9 if state is State.SCHEDULED else None))
        assert opened.changes[-1].expires_at == NOW + 50
        assert await opened.store.next_expiry() == NOW + 50
        assert (await opened.store.expire(NOW + 49, 10)).count == 0
        assert (await opened.store.expire(NOW + 50, 10)).count == 1
        row = await opened.job(job.job_id)
        assert (row.state, row.end_cause) == (State.SKIPPED_DEADLINE, EndCause.DEADLINE)
        assert seen(opened.commits[-1]) == [(job.job_id, state, State.SKIPPED_DEADLINE)]


@pytest.mark.parametrize(("ttl_ms", "deadline"), [(5, 6), (6, 5), (5, 5)])
async def test_what_was_over_first_is_the_cause(harness: Harness, ttl_ms: int, deadline: int) -> None:
    async with harness.open() as opened:
        await opened.insert(job := new_job(ttl_ms=ttl_ms, deadline=NOW + deadline))
        assert await opened.store.next_expiry() == NOW + 5
        await opened.store.expire(NOW + 1000, 10)
        expected = State.SKIPPED_TTL if ttl_ms < deadline else State.SKIPPED_DEADLINE
        assert (await opened.job(job.job_id)).state is expected


@pytest.mark.parametrize("fields", [{"ttl_ms": 5}, {"deadline": NOW + 5}, {"ttl_ms": 9, "deadline": NOW + 5}])
async def test_a_claim_takes_nothing_whose_time_is_over(harness: Harness, fields: Any) -> None:
    """Also before the timer has come to it."""
    async with harness.open() as opened:
        await opened.insert(new_job(**fields), other := new_job(ttl_ms=6), third := new_job(**fields))
        assert [job.job_id for job in await opened.claim(now=NOW + 5)] == [other.job_id]
        assert third.job_id in [job.job_id for job in await opened.claim(now=NOW + 4)]


async def test_ttl_ends_with_the_first_claim_and_a_deadline_does_not(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job(ttl_ms=5, on_interrupt=OnInterrupt.REQUEUE, max_attempts=2, deadline=NOW + 90))
        [job] = await opened.claim(now=NOW + 4)
        assert [change.expires_at for change in opened.commits[-1]] == [None]
        assert await opened.store.next_expiry() is None
        assert (await opened.store.expire(NOW + 1000, 10)).count == 0  # what runs is stopped by the engine
        await opened.finish(job, outcomes.interrupted("the daemon died"))
        assert opened.changes[-1].expires_at == NOW + 90
        assert await opened.store.next_expiry() == NOW + 90
        [again] = await opened.claim(now=NOW + 60)
        await opened.finish(again, outcomes.of_command(1 << 8))
        assert (opened.changes[-1].after, opened.changes[-1].expires_at) == (State.SCHEDULED, NOW + 90)
        assert (await opened.store.expire(NOW + 90, 10)).count == 1
        assert await opened.counts() == {"SKIPPED_DEADLINE": 1}


async def test_paused_queues_too_and_never_more_than_the_limit(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.store.configure_queue("default", paused=True)
        jobs = [new_job(deadline=NOW + n) for n in (30, 10, 20, 40, 10)]
        await opened.insert(*jobs)
        expired = await opened.store.expire(NOW + 30, 3)
        assert (expired.count, expired.next_at) == (3, NOW + 30)
        assert [change.job_id for change in opened.commits[-1]] == [jobs[n].job_id for n in (1, 4, 2)]
        expired = await opened.store.expire(NOW + 30, 3)
        assert (expired.count, expired.next_at) == (1, NOW + 40)


async def test_the_times_are_those_of_the_model(harness: Harness) -> None:
    """For every combination, before and after an attempt; told with the change, and by next_expiry."""
    offsets: list[int | None] = [None, -5, 0, 7, 60]
    base = NOW + 10_000  # so that none is over when it is claimed
    async with harness.open() as opened:
        for run_at, deadline, ttl_ms in itertools.product(offsets, offsets, [None, 0, 8, 70]):
            job = new_job(
                created_at=base,
                run_at=None if run_at is None else base + run_at,
                deadline=None if deadline is None else base + deadline,
                ttl_ms=ttl_ms,
                on_interrupt=OnInterrupt.REQUEUE,
            )
            await opened.insert(job)
            for claim_no in (0, 1):
                row = await opened.job(job.job_id)
                expected = expires_at(row, row.state, claim_no)
                assert row.claim_no == claim_no
                assert opened.changes[-1].expires_at == expected
                assert await opened.store.next_expiry() == expected
                await opened.store.promote(base + 1000, 1)
                row = await opened.job(job.job_id)
                assert opened.changes[-1].expires_at == expires_at(row, State.QUEUED, claim_no)
                for claimed in await opened.claim(now=NOW):
                    await opened.finish(claimed, outcomes.interrupted("the daemon died"))
            await opened.stop(StopReason.CANCEL, job_id=job.job_id)


async def test_classes_are_kept_with_the_queue(harness: Harness) -> None:
    async with harness.open() as opened:
        assert (await opened.store.configure_queue("a")).queue_class is QueueClass.NORMAL
        row = await opened.store.configure_queue("a", queue_class=QueueClass.BACKGROUND)
        assert (row.queue_class, row.paused) == (QueueClass.BACKGROUND, False)
        assert (await opened.store.configure_queue("a", paused=True)).queue_class is QueueClass.BACKGROUND
        await opened.store.configure_queue("b", queue_class=QueueClass.INTERACTIVE)
    async with harness.open() as opened:
        classes = {row.name: row.queue_class for row in await opened.store.queues()}
        assert classes == {"a": QueueClass.BACKGROUND, "b": QueueClass.INTERACTIVE}


async def test_a_claim_may_ask_for_a_least_priority(harness: Harness) -> None:
    jobs = [new_job(priority=priority) for priority in (-1, 0, 1, -100)]
    async with harness.open() as opened:
        await opened.insert(*jobs)
        for least, expected in ((1, [2]), (0, [1]), (-100, [0, 3])):
            request = ClaimRequest(
                mode=SUBPROCESS, queues={"default": 9}, limit=9, now=NOW, node_id="n", min_priority=least, facts=facts
            )
            claimed = await opened.store.claim(request)
            assert [job.job_id for job in claimed] == [jobs[n].job_id for n in expected]
