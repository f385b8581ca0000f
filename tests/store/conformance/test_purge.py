"""Deleting what is old: never what lives, nor what a live job points to."""

from __future__ import annotations

from typing import Any

import pytest

from semtask.model import outcome as outcomes
from semtask.model.job import OnDuplicate
from semtask.model.state import State
from semtask.store.requests import Purge, Purged
from tests.store.harness import NOW, Harness, Opened, new_id, new_job


async def finished(opened: Opened, count: int, *, at: int = NOW, **fields: Any) -> list[str]:
    """Jobs that failed, each with an attempt, a millisecond apart."""
    jobs = [new_job(**fields) for _ in range(count)]
    await opened.insert(*jobs)
    for n, job in enumerate(await opened.claim({jobs[0].queue: count}, limit=count)):
        await opened.finish(job, outcomes.of_command(1 << 8), now=at + n)
    return [job.job_id for job in jobs]


async def all_of(opened: Opened, purge: Purge) -> list[Purged]:
    answers = [await opened.store.purge(purge)]
    while answers[-1].more:
        answers.append(await opened.store.purge(purge))
        assert len(answers) < 1000
    return answers


def ids(answers: list[Purged]) -> list[str]:
    return [job_id for answer in answers for job_id, _ in answer.jobs]


async def test_by_age_oldest_end_first_with_attempts_and_counts(harness: Harness) -> None:
    async with harness.open() as opened:
        old = await finished(opened, 7)
        young = await finished(opened, 3, at=NOW + 100, queue="b")
        await opened.store.count({"done.ever": 10})
        answers = await all_of(opened, Purge(finished_before=NOW + 100, limit=3))
        assert [answer.jobs for answer in answers] == [
            [(job_id, 1) for job_id in part] for part in (old[:3], old[3:6], old[6:])
        ]
        assert [answer.more for answer in answers] == [True, True, False]
        assert set(await opened.store.get_many([*old, *young])) == set(young)
        assert [await opened.store.attempts(job_id) for job_id in old] == [[]] * 7
        assert [len(await opened.store.attempts(job_id)) for job_id in young] == [1] * 3
        assert await opened.counts() == {}
        assert await opened.counts("b") == {"FAILED": 3}
        assert await opened.store.counters() == {"done.ever": 10}
        assert (await opened.store.purge(Purge(finished_before=NOW + 100))).jobs == []


@pytest.mark.parametrize(("keep", "gone"), [(0, 10), (4, 6), (10, 0), (11, 0)])
async def test_by_count_the_newest_are_kept(harness: Harness, keep: int, gone: int) -> None:
    async with harness.open() as opened:
        jobs = [*await finished(opened, 6), *await finished(opened, 4, at=NOW + 50, queue="b")]
        await opened.insert(*(new_job() for _ in range(5)))  # live ones do not count
        assert ids(await all_of(opened, Purge(keep=keep, limit=4))) == jobs[:gone]
        assert await opened.counts() == {"QUEUED": 5, "FAILED": 6 - min(gone, 6)} if gone < 6 else {"QUEUED": 5}


async def test_either_rule_is_enough(harness: Harness) -> None:
    async with harness.open() as opened:
        jobs = await finished(opened, 10)
        assert ids([await opened.store.purge(Purge(finished_before=NOW + 2, keep=5))]) == jobs[:5]
        assert ids([await opened.store.purge(Purge(finished_before=NOW + 7, keep=5))]) == jobs[5:7]
        assert ids([await opened.store.purge(Purge())]) == []


@pytest.mark.parametrize("state", [State.QUEUED, State.SCHEDULED, State.RUNNING])
@pytest.mark.parametrize("field", ["parent_job_id", "retry_of"])
async def test_what_a_live_job_points_to_stays(harness: Harness, field: str, state: State) -> None:
    async with harness.open() as opened:
        named, other = await finished(opened, 2)
        pointing: Any = {field: named, "run_at": NOW + 9 if state is State.SCHEDULED else None}
        await opened.insert(job := new_job(**pointing))
        if state is State.RUNNING:
            await opened.claim()
        assert ids(await all_of(opened, Purge(finished_before=NOW + 100, limit=1))) == [other]
        if state is State.SCHEDULED:
            await opened.store.promote(NOW + 9, 1)
        if state is not State.RUNNING:
            await opened.claim()
        await opened.finish(await opened.job(job.job_id), now=NOW + 200)
        assert ids(await all_of(opened, Purge(finished_before=NOW + 100, limit=1))) == [named]
        assert (await opened.job(job.job_id)).state is State.DONE


async def test_live_jobs_stay_whatever_is_asked(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(*(new_job(created_at=1, run_at=run_at) for run_at in (None, None, 2)))
        [running] = await opened.claim(limit=1, now=1)
        assert ids(await all_of(opened, Purge(finished_before=NOW * 2, keep=0))) == []
        assert await opened.counts() == {"QUEUED": 1, "SCHEDULED": 1, "RUNNING": 1}
        assert (await opened.job(running.job_id)).state is State.RUNNING


async def test_kept_ones_count_as_kept(harness: Harness) -> None:
    """Three of the six beyond the newest four are pointed to: the other three go, and none of the four."""
    async with harness.open() as opened:
        jobs = await finished(opened, 10)
        await opened.insert(*(new_job(parent_job_id=jobs[n]) for n in (0, 2, 4)))
        for limit in (1, 2, 1000):
            gone = ids(await all_of(opened, Purge(keep=4, limit=limit)))
            assert gone == ([jobs[1], jobs[3], jobs[5]] if limit == 1 else [])


async def test_many_that_ended_at_once(harness: Harness) -> None:
    async with harness.open() as opened:
        jobs = [new_job(tag="t") for _ in range(2500)]
        await opened.insert(*jobs, keeper := new_job(parent_job_id=jobs[700].job_id))
        await opened.cancel(tag="t")
        answers = await all_of(opened, Purge(finished_before=NOW + 1))
        assert [len(answer.jobs) for answer in answers] == [999, 1000, 500]
        assert len({*ids(answers), jobs[700].job_id, keeper.job_id}) == 2501
        assert await opened.counts() == {"CANCELLED": 1, "QUEUED": 1}


async def test_a_key_is_free_again_when_its_job_is_gone(harness: Harness) -> None:
    async with harness.open() as opened:
        [old] = await finished(opened, 1, idempotency_key="k")
        await opened.store.purge(Purge(finished_before=NOW + 1))
        [answer] = await opened.store.insert([new_job(idempotency_key="k", content_hash=b"other")], durable=True)
        assert (answer.deduplicated, answer.job_id != old) == (False, True)


async def test_subjects_go_when_no_job_of_them_is_left(harness: Harness) -> None:
    def about(subject: str) -> dict[str, Any]:
        return {"subject_key": subject, "on_duplicate": OnDuplicate.AFTER}

    async with harness.open() as opened:
        for subject in "aab":
            await finished(opened, 1, **about(subject))
        await finished(opened, 1, at=NOW + 50, **about("b"))
        assert await opened.store.purge_subjects(10) == 0
        await opened.store.purge(Purge(finished_before=NOW + 50))
        assert await opened.store.purge_subjects(10) == 1
        answers = await opened.store.insert([new_job(**about("a")), new_job(**about("b"))], durable=True)
        assert [answer.generation for answer in answers] == [1, 3]
        await opened.store.purge(Purge(finished_before=NOW + 51))
        assert await opened.store.purge_subjects(10) == 0  # the live ones hold them
        for job in await opened.claim():
            await opened.finish(job)
        await opened.store.purge(Purge(keep=0))
        assert [await opened.store.purge_subjects(1) for _ in range(3)] == [1, 1, 0]


async def test_free_pages_are_given_back(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(*(new_job(payload='"' + "x" * 2000 + '"', tag="t") for _ in range(2000)))
        await opened.cancel(tag="t")
        await opened.store.checkpoint()
        full = await opened.store.size_bytes()
        await all_of(opened, Purge(keep=0))
        left = [await opened.store.compact(200)]
        while left[-1]:
            left.append(await opened.store.compact(200))
        assert len(left) > 5
        assert left == sorted(left, reverse=True)
        await opened.store.checkpoint()
        assert await opened.store.size_bytes() < full / 5
        await opened.insert(new_job())
        assert await opened.counts() == {"QUEUED": 1}
        assert await opened.store.get(new_id()) is None
