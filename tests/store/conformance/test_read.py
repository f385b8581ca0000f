"""Promotion, queues, counters, listings, and the life of a store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from semtask.errors import DatabaseError
from semtask.model import outcome as outcomes
from semtask.model.job import ExecutionMode, NewJob
from semtask.model.state import State, StopReason
from semtask.store.base import Change, Store
from semtask.store.requests import JobFilter
from tests.store.harness import NOW, Harness, Opened, new_id, new_job, seen


async def test_promotion_is_earliest_first_and_says_what_comes_next(harness: Harness) -> None:
    jobs = [new_job(run_at=NOW + n) for n in (30, 10, 20, 40, 10)]
    async with harness.open() as opened:
        assert await opened.store.next_due() is None
        await opened.insert(*jobs)
        assert await opened.store.next_due() == NOW + 10
        assert (await opened.store.promote(NOW + 9, 10)).count == 0
        promoted = await opened.store.promote(NOW + 30, 3)
        assert (promoted.count, promoted.next_due) == (3, NOW + 30)
        assert seen(opened.commits[-1]) == [(jobs[n].job_id, State.SCHEDULED, State.QUEUED) for n in (1, 4, 2)]
        promoted = await opened.store.promote(NOW + 30, 3)
        assert (promoted.count, promoted.next_due) == (1, NOW + 40)
        assert await opened.counts() == {"SCHEDULED": 1, "QUEUED": 4}
        assert [job.job_id for job in await opened.claim(limit=1)] == [jobs[0].job_id]


async def test_a_retry_waits_and_is_promoted(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job(max_attempts=2, retry_base_delay_ms=100))
        [job] = await opened.claim()
        await opened.finish(job, outcomes.of_command(1 << 8), jitter=1.0)
        assert await opened.store.next_due() == NOW + 100
        assert (await opened.store.promote(NOW + 99, 9)).count == 0
        assert (await opened.store.promote(NOW + 100, 9)).count == 1
        assert [again.claim_no for again in await opened.claim()] == [2]


async def test_the_oldest_ready_job_of_a_queue_is_told_whatever_its_priority(harness: Harness) -> None:
    async with harness.open() as opened:
        assert await opened.store.oldest_ready() == {}
        await opened.insert(
            new_job(queue="a", created_at=NOW + 5, priority=7),
            new_job(queue="a", created_at=NOW + 3, priority=-7),
            new_job(queue="a", created_at=NOW + 4, priority=-7),
            new_job(queue="a", created_at=NOW + 6, execution_mode=ExecutionMode.IN_PROCESS),
            new_job(queue="b", created_at=NOW, run_at=NOW + 9),
            new_job(queue="c", created_at=NOW, run_at=NOW + 9_000),
        )
        assert await opened.store.oldest_ready() == {"a": NOW + 3}
        await opened.store.promote(NOW + 9, 10)
        assert await opened.store.oldest_ready() == {"a": NOW + 3, "b": NOW + 9}
        await opened.claim(["a", "b"])
        assert await opened.store.oldest_ready() == {"a": NOW + 6}


async def test_queues_appear_with_their_first_job_or_setting(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job(queue="b"))
        row = await opened.store.configure_queue("a", concurrency=3)
        assert (row.name, row.paused, row.concurrency, sum(row.counts.values())) == ("a", False, 3, 0)
        assert set(row.counts) == set(State)
        assert (await opened.store.configure_queue("a", paused=True)).concurrency == 3
        assert (await opened.store.configure_queue("a", concurrency=None)).concurrency is None
        row = await opened.store.configure_queue("b", paused=True)
        assert (row.paused, row.counts[State.QUEUED]) == (True, 1)
        assert [queue.name for queue in await opened.store.queues()] == ["a", "b"]
    async with harness.open() as opened:
        assert [(q.name, q.paused) for q in await opened.store.queues()] == [("a", True), ("b", True)]


async def test_counters_add_up_over_lives(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.store.count({"recovery.orphaned_jobs": 2, "x": 1})
        await opened.store.count({})
    async with harness.open() as opened:
        await opened.store.count({"recovery.orphaned_jobs": 3})
        assert await opened.store.counters() == {"recovery.orphaned_jobs": 5, "x": 1}


async def _filled(opened: Opened) -> list[NewJob]:
    """60 jobs: 20 DONE, 10 FAILED, 10 RUNNING, 10 CANCELLED, 10 QUEUED."""
    jobs = [
        new_job(
            queue=f"q{n % 3}",
            tag=f"t{n % 4}" if n % 2 else None,
            chain_group_id=f"g{n % 5}" if n % 3 else None,
            job_type=f"type{n % 2}",
            created_at=NOW + n,
        )
        for n in range(60)
    ]
    await opened.insert(*jobs)
    claimed = await opened.claim(["q0", "q1", "q2"], limit=40)
    for n, job in enumerate(claimed[:30]):
        await opened.finish(job, outcomes.of_command(0 if n < 20 else 1 << 8))
    for fresh in jobs[40:50]:
        await opened.cancel(job_id=fresh.job_id)
    return jobs


FILTERS: dict[str, JobFilter] = {
    "all": JobFilter(),
    "done": JobFilter(state=[State.DONE]),
    "ended badly": JobFilter(state=[State.FAILED, State.CANCELLED]),
    "live": JobFilter(state=[State.QUEUED, State.SCHEDULED, State.RUNNING]),
    "twice": JobFilter(state=[State.DONE, State.DONE]),
    "queue": JobFilter(queue=["q1"]),
    "queues": JobFilter(queue=["q2", "q0", "none"]),
    "queue and state": JobFilter(queue=["q1", "q2"], state=[State.DONE, State.RUNNING]),
    "tag": JobFilter(tag="t3"),
    "tag and state": JobFilter(tag="t3", state=[State.FAILED]),
    "group": JobFilter(chain_group_id="g2"),
    "type": JobFilter(job_type="type1"),
    "since": JobFilter(created_after=NOW + 30),
    "nothing": JobFilter(tag="none"),
    "everything at once": JobFilter(
        tag="t1", chain_group_id="g1", job_type="type1", state=list(State), queue=["q0", "q1", "q2"], created_after=NOW
    ),
}


def _matches(where: JobFilter, job: Any) -> bool:
    return (
        (not where.state or job.state in where.state)
        and (not where.queue or job.queue in where.queue)
        and all(getattr(where, name) in {None, getattr(job, name)} for name in ("tag", "chain_group_id", "job_type"))
        and (where.created_after is None or job.created_at > where.created_after)
    )


async def test_listings_page_by_page(harness: Harness) -> None:
    """Every filter, both orders, several page sizes, against a filter written in Python."""
    async with harness.open() as opened:
        ids = [job.job_id for job in await _filled(opened)]
        stored = await opened.store.get_many(ids)
        for name, where in FILTERS.items():
            for newest_first in (True, False):
                expected = [stored[job_id] for job_id in ids if _matches(where, stored[job_id])]
                if newest_first:
                    expected.reverse()
                for limit in (1, 7, 60, 200):
                    assert await _pages(opened.store, where, newest_first, limit) == expected, name


async def _pages(store: Store, where: JobFilter, newest_first: bool, limit: int) -> list[Any]:
    items: list[Any] = []
    after_seq = None
    while True:
        page = await store.query(where, newest_first=newest_first, limit=limit, after_seq=after_seq)
        assert len(page.items) <= limit
        items += page.items
        if page.next_seq is None:
            return items
        assert len(page.items) == limit
        after_seq = page.next_seq


async def test_a_job_is_found_by_the_end_of_its_id(harness: Harness) -> None:
    async with harness.open() as opened:
        jobs = [new_job() for _ in range(50)]
        await opened.insert(*jobs)
        digits = jobs[17].job_id.replace("-", "")
        for length in (8, 16, 32):
            where = JobFilter(id_suffix=digits[-length:])
            page = await opened.store.query(where, newest_first=True, limit=9, after_seq=None)
            assert [job.job_id for job in page.items] == [jobs[17].job_id]


async def test_unknown_ids_are_no_error(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(job := new_job())
        assert await opened.store.get(new_id()) is None
        assert await opened.store.attempts(new_id()) == []
        assert set(await opened.store.get_many([new_id(), job.job_id, job.job_id])) == {job.job_id}
        assert await opened.store.get_many([]) == {}


async def test_what_was_written_is_there_after_a_restart(harness: Harness) -> None:
    async with harness.open() as opened:
        jobs = await _filled(opened)
        ids = [job.job_id for job in jobs]
        before = (await opened.store.get_many(ids), await opened.store.queues(), await opened.store.running())
        epoch = opened.store.daemon_epoch
    async with harness.open() as opened:
        after = (await opened.store.get_many(ids), await opened.store.queues(), await opened.store.running())
        assert after == before
        assert opened.store.daemon_epoch == epoch + 1
        assert await opened.store.size_bytes() > 0
        await opened.store.healthy()


async def test_what_was_accepted_is_finished_at_the_close(harness: Harness) -> None:
    jobs = [new_job() for _ in range(300)]
    async with harness.open() as opened:
        writes = [asyncio.ensure_future(opened.insert(job)) for job in jobs]
        await asyncio.sleep(0)  # all are handed over now
        await opened.store.close()
        assert all(write.done() and write.exception() is None for write in writes)
        await opened.store.close()
        for attempt in (opened.insert(new_job()), opened.store.get(new_id())):
            with pytest.raises(DatabaseError, match="closed"):
                await attempt
    async with harness.open() as opened:
        assert await opened.counts() == {"QUEUED": 300}


async def test_a_cancelled_awaiter_is_no_error(harness: Harness) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    async with harness.open() as opened:
        for bad in (False, True):
            job = new_job(priority=101 if bad else 0)
            write = asyncio.ensure_future(opened.insert(job))
            await asyncio.sleep(0)
            write.cancel()
            with pytest.raises(asyncio.CancelledError):
                await write
        await opened.insert(new_job())
        assert await opened.counts() == {"QUEUED": 2}
    assert complaints == []


async def test_a_failing_listener_does_not_keep_the_answers(harness: Harness) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    def broken(changes: Sequence[Change]) -> None:
        raise RuntimeError("listener")

    async with harness.open(on_commit=broken) as opened:
        await opened.insert(new_job())
    assert [str(context["exception"]) for context in complaints] == ["listener"]


async def test_many_writers_at_once(harness: Harness) -> None:
    """Counts, rows and changes agree after a few hundred requests of all kinds in flight together."""
    async with harness.open() as opened:
        jobs = [new_job(queue=f"q{n % 4}", tag=f"t{n % 10}") for n in range(400)]

        async def live(number: int) -> None:
            await opened.insert(jobs[number])
            for job in await opened.claim([f"q{number % 4}"], limit=1):
                if number % 3 == 0:
                    await opened.stop(StopReason.CANCEL, job_id=job.job_id)
                await opened.finish(job, outcomes.of_command(0 if number % 5 else 1 << 8))

        await asyncio.gather(*(live(number) for number in range(400)), opened.cancel(tag="t5"))
        stored = await opened.store.get_many([job.job_id for job in jobs])
        for queue in await opened.store.queues():
            counted = dict.fromkeys(State, 0)
            for job in stored.values():
                counted[job.state] += job.queue == queue.name
            assert queue.counts == counted
        states: dict[str, State | None] = {}
        for change in opened.changes:
            assert change.before == states.get(change.job_id)
            states[change.job_id] = change.after
        assert states == {job_id: job.state for job_id, job in stored.items()}
        claims = [
            change.job_id for change in opened.changes if change.after is State.RUNNING and not change.stop_reason
        ]
        assert len(claims) == len(set(claims))
