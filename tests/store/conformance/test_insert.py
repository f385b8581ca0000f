"""What every store must do with new jobs."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from semtask.errors import Conflict, DatabaseError
from semtask.model.job import NewJob, OnDuplicate, OnInterrupt
from semtask.model.state import State
from tests.store.harness import IN_PROCESS, NOW, Harness, new_id, new_job, seen


async def test_a_job_is_stored_with_every_field(harness: Harness) -> None:
    job = new_job(
        queue="q-1",
        job_type="index",
        execution_mode=IN_PROCESS,
        payload='{"text": "ü\\u0000", "n": 1}',
        on_interrupt=OnInterrupt.REQUEUE,
        content_hash=bytes(range(32)),
        run_at=NOW + 5,
        priority=-100,
        max_attempts=7,
        backoff_factor=1.5,
        retry_base_delay_ms=10,
        retry_max_delay_ms=20,
        timeout_ms=30,
        grace_ms=60_000,
        deadline=NOW + 40,
        ttl_ms=50,
        subject_key="subject",
        on_duplicate=OnDuplicate.AFTER,
        tag="tag",
        chain_group_id="group",
        parent_job_id=new_id(),
        retry_of=new_id(),
        trace_context="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        idempotency_key="key",
        retry_on_crash=True,
    )
    async with harness.open() as opened:
        await opened.insert(job)
        stored = await opened.job(job.job_id)
    kept = set(NewJob.__struct_fields__) - {"on_duplicate", "durability"}
    assert {name: getattr(stored, name) for name in kept} == {name: getattr(job, name) for name in kept}
    assert (stored.state, stored.claim_no, stored.generation) == (State.SCHEDULED, 0, 1)


async def test_answers_and_seq_are_in_the_order_of_the_request(harness: Harness) -> None:
    jobs = [new_job(queue=f"q{n % 3}") for n in range(100)]
    async with harness.open() as opened:
        answers = await opened.store.insert(jobs, durable=False)
        stored = await opened.store.get_many([job.job_id for job in jobs])
    assert [answer.job_id for answer in answers] == [job.job_id for job in jobs]
    numbers = [stored[job.job_id].seq for job in jobs]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    ("run_at", "state"),
    [(None, State.QUEUED), (NOW - 1, State.QUEUED), (NOW, State.QUEUED), (NOW + 1, State.SCHEDULED)],
)
async def test_a_job_waits_only_for_a_time_to_come(harness: Harness, run_at: int | None, state: State) -> None:
    job = new_job(run_at=run_at)
    async with harness.open() as opened:
        [answer] = await opened.store.insert([job], durable=True)
        assert answer.state is state
        assert (await opened.job(job.job_id)).state is state
        assert await opened.counts() == {state.value: 1}
        [change] = opened.changes
    assert (change.before, change.after, change.run_at) == (None, state, run_at)


async def test_changes_are_told_once_and_before_the_write_returns(harness: Harness) -> None:
    async with harness.open() as opened:
        for round_ in range(1, 4):
            jobs = [new_job(), new_job()]
            await opened.insert(*jobs)
            assert len(opened.commits) == round_
            assert seen(opened.commits[-1]) == [(job.job_id, None, State.QUEUED) for job in jobs]


async def test_a_known_key_with_the_same_content_gives_the_stored_job(harness: Harness) -> None:
    first = new_job(idempotency_key="k", queue="one")
    async with harness.open() as opened:
        await opened.insert(first)
        await opened.claim(["one"])
        told = len(opened.changes)
        again = [new_job(idempotency_key="k", queue="one"), new_job()]
        answers = await opened.store.insert(again, durable=True)
        assert (answers[0].job_id, answers[0].deduplicated, answers[0].state) == (first.job_id, True, State.RUNNING)
        assert (answers[1].job_id, answers[1].deduplicated) == (again[1].job_id, False)
        assert await opened.store.get(again[0].job_id) is None
        assert seen(opened.changes[told:]) == [(again[1].job_id, None, State.QUEUED)]
        assert await opened.counts("one") == {"RUNNING": 1}


async def test_a_known_key_with_other_content_is_a_conflict_and_stores_nothing(harness: Harness) -> None:
    first = new_job(idempotency_key="k")
    others = [new_job(), new_job(idempotency_key="k", content_hash=b"other")]
    async with harness.open() as opened:
        await opened.insert(first)
        with pytest.raises(Conflict) as caught:
            await opened.store.insert(others, durable=True)
        assert caught.value.details == {"job_id": first.job_id, "index": 1, "idempotency_key": "k"}
        assert first.job_id in caught.value.message
        assert await opened.store.get_many([job.job_id for job in others]) == {}
        assert await opened.counts() == {"QUEUED": 1}
        assert len(opened.changes) == 1


async def test_a_key_holds_inside_one_request_too(harness: Harness) -> None:
    first, same = new_job(idempotency_key="k"), new_job(idempotency_key="k")
    async with harness.open() as opened:
        answers = await opened.store.insert([first, same], durable=True)
        assert [(a.job_id, a.deduplicated) for a in answers] == [(first.job_id, False), (first.job_id, True)]
        assert await opened.counts() == {"QUEUED": 1}
        with pytest.raises(Conflict) as caught:
            await opened.insert(new_job(idempotency_key="l"), new_job(idempotency_key="l", content_hash=b"other"))
        assert caught.value.details["index"] == 1
        assert await opened.counts() == {"QUEUED": 1}


async def test_a_key_of_a_finished_job_still_holds(harness: Harness) -> None:
    first = new_job(idempotency_key="k")
    async with harness.open() as opened:
        await opened.insert(first)
        [job] = await opened.claim()
        await opened.finish(job)
        [answer] = await opened.store.insert([new_job(idempotency_key="k")], durable=True)
        assert (answer.job_id, answer.state, answer.deduplicated) == (first.job_id, State.DONE, True)


async def test_a_job_id_is_taken_once(harness: Harness) -> None:
    job = new_job()
    async with harness.open() as opened:
        await opened.insert(job)
        for batch in ([new_job(), job], [same := new_job(), same]):
            with pytest.raises(Conflict, match="job_id"):
                await opened.insert(*batch)
            assert await opened.counts() == {"QUEUED": 1}


async def test_a_refused_request_hurts_no_other(harness: Harness) -> None:
    good = [new_job() for _ in range(20)]
    bad = msgspec.structs.replace(new_job(), priority=101)
    async with harness.open() as opened:
        results = await asyncio.gather(
            *(opened.store.insert([job], durable=True) for job in good[:10]),
            opened.store.insert([new_job(), bad], durable=True),
            *(opened.store.insert([job], durable=True) for job in good[10:]),
            return_exceptions=True,
        )
        failed = [result for result in results if isinstance(result, BaseException)]
        assert len(failed) == 1
        assert isinstance(failed[0], DatabaseError)
        assert await opened.counts() == {"QUEUED": 20}
        assert seen(opened.changes) == [(job.job_id, None, State.QUEUED) for job in good]


async def test_generations_count_within_a_subject_and_only_stored_jobs(harness: Harness) -> None:
    def about(subject: str, job_type: str = "t", **fields: object) -> NewJob:
        return new_job(subject_key=subject, job_type=job_type, on_duplicate=OnDuplicate.AFTER, **fields)

    async with harness.open() as opened:
        answers = await opened.store.insert([about("a"), about("a"), about("b"), about("a", "u")], durable=True)
        assert [answer.generation for answer in answers] == [1, 2, 1, 1]
        with pytest.raises(Conflict):
            await opened.insert(about("a"), same := new_job(), same)
        keyed = [about("a", idempotency_key="k"), about("a", idempotency_key="k"), about("a")]
        answers = await opened.store.insert(keyed, durable=True)
        assert [answer.generation for answer in answers] == [3, 3, 4]


async def test_numbers_are_never_used_twice(harness: Harness) -> None:
    job = new_job()
    async with harness.open() as opened:
        await opened.insert(new_job(), job)
        last = (await opened.job(job.job_id)).seq
    async with harness.open() as opened:
        await opened.insert(job := new_job())
        assert (await opened.job(job.job_id)).seq > last


async def test_ten_thousand_jobs_in_one_request(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(*(new_job() for _ in range(10_000)))
        assert await opened.counts() == {"QUEUED": 10_000}
        assert [len(commit) for commit in opened.commits] == [10_000]


async def test_a_request_without_jobs(harness: Harness) -> None:
    async with harness.open() as opened:
        assert await opened.store.insert([], durable=True) == []
        assert await opened.store.queues() == []
