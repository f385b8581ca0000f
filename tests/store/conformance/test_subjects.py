"""A subject is a lane: what a new job does to the live ones, and who runs next."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from semtask.errors import Conflict
from semtask.model import outcome as outcomes
from semtask.model.job import Job, NewJob, OnDuplicate, OnInterrupt
from semtask.model.state import EndCause, Event, State, StopReason
from semtask.store.requests import Inserted, Running
from tests.store.harness import IN_PROCESS, NOW, Harness, Opened, new_job, seen

SUPERSEDE, SUPERSEDE_RUNNING = OnDuplicate.SUPERSEDE, OnDuplicate.SUPERSEDE_RUNNING
FAILED = outcomes.of_command(1 << 8)


def about(subject: str = "s", on_duplicate: OnDuplicate = OnDuplicate.AFTER, **fields: Any) -> NewJob:
    return new_job(subject_key=subject, on_duplicate=on_duplicate, **fields)


async def insert(opened: Opened, *jobs: NewJob) -> list[Inserted]:
    return await opened.store.insert(jobs, durable=True)


async def states(opened: Opened, *jobs: NewJob) -> list[State]:
    stored = await opened.store.get_many([job.job_id for job in jobs])
    return [stored[job.job_id].state for job in jobs]


async def a_lane(opened: Opened, **of_running: Any) -> tuple[Job, NewJob, NewJob, NewJob]:
    """A running job, a queued one, a delayed one, and one that failed and waits for its retry."""
    retrying, running, queued, delayed = (
        about(max_attempts=2),
        about(**of_running),
        about(),
        about(run_at=NOW + 999),
    )
    await insert(opened, retrying)
    await opened.finish((await opened.claim())[0], FAILED)
    await insert(opened, running, queued, delayed)
    [job] = await opened.claim()
    assert job.job_id == running.job_id
    return job, queued, delayed, retrying


@pytest.mark.parametrize("how", [SUPERSEDE, SUPERSEDE_RUNNING])
async def test_a_new_job_supersedes_all_that_live(harness: Harness, how: OnDuplicate) -> None:
    async with harness.open() as opened:
        running, *waiting = await a_lane(opened, grace_ms=70)
        await insert(opened, other := about("t"), other_type := about(job_type="other"))
        newest = about(on_duplicate=how, created_at=NOW + 5)
        [answer] = await insert(opened, newest)
        assert (answer.state, answer.generation, answer.superseded) == (State.QUEUED, 5, 4)
        stopping = Running(job_id=running.job_id, claim_no=1, reason=StopReason.SUPERSEDED, grace_ms=70)
        assert list(answer.stopping) == ([stopping] if how is SUPERSEDE_RUNNING else [])
        for job in waiting:
            row = await opened.job(job.job_id)
            assert (row.state, row.end_cause) == (State.SUPERSEDED, EndCause.SUPERSEDED)
            assert (row.finished_at, row.superseded_by) == (NOW + 5, newest.job_id)
        row = await opened.job(running.job_id)
        assert (row.state, row.superseded_by) == (State.RUNNING, newest.job_id)
        assert row.stop_reason is (StopReason.SUPERSEDED if how is SUPERSEDE_RUNNING else None)
        assert await states(opened, newest, other, other_type) == [State.QUEUED] * 3
        changes = {(c.job_id, c.before, c.after, c.subject_key) for c in opened.commits[-1]}
        queued, delayed, retrying = waiting
        expected = {
            (newest.job_id, None, State.QUEUED, "s"),
            (queued.job_id, State.QUEUED, State.SUPERSEDED, "s"),
            (delayed.job_id, State.SCHEDULED, State.SUPERSEDED, "s"),
            (retrying.job_id, State.SCHEDULED, State.SUPERSEDED, "s"),
        }
        if how is SUPERSEDE_RUNNING:
            expected.add((running.job_id, State.RUNNING, State.RUNNING, "s"))
        assert changes == expected
        assert await opened.counts() == {"RUNNING": 1, "SUPERSEDED": 3, "QUEUED": 3}
        assert newest.job_id not in {job.job_id for job in await opened.claim()}  # a sibling still runs


ENDS = {
    "success": (outcomes.of_command(0), State.DONE),
    "retry": (FAILED, State.SUPERSEDED),
    "given back": (outcomes.no_room("EAGAIN"), State.SUPERSEDED),
    "never ran": (outcomes.never_ran("the daemon died first"), State.SUPERSEDED),
    "requeued": (outcomes.interrupted("the daemon died"), State.SUPERSEDED),
    "crash": (outcomes.lost("the shim is gone"), State.SUPERSEDED),
    "for good": (outcomes.spawn_failed("no such program"), State.FAILED),
}


@pytest.mark.parametrize(("outcome", "state"), ENDS.values(), ids=ENDS.keys())
async def test_a_superseded_running_job_never_waits_again(harness: Harness, outcome: Any, state: State) -> None:
    async with harness.open() as opened:
        await insert(opened, about(max_attempts=9, retry_on_crash=True, on_interrupt=OnInterrupt.REQUEUE))
        [running] = await opened.claim()
        await insert(opened, newest := about(on_duplicate=SUPERSEDE))
        finished = await opened.finish(running, outcome)
        row = await opened.job(running.job_id)
        assert (row.state, row.superseded_by) == (state, newest.job_id)
        if state is State.SUPERSEDED:
            assert finished.decision is not None
            assert finished.decision.event is Event.SUPERSEDE
            assert (row.end_cause, row.finished_at) == (EndCause.SUPERSEDED, NOW)
        assert await opened.store.next_due() is None
        assert [job.job_id for job in await opened.claim()] == [newest.job_id]


async def test_a_superseded_job_that_is_stopped_ends_superseded_whatever_it_says(harness: Harness) -> None:
    async with harness.open() as opened:
        await insert(opened, about())
        [running] = await opened.claim()
        await insert(opened, about(on_duplicate=SUPERSEDE_RUNNING))
        await opened.finish(running, outcomes.of_command(0))
        row = await opened.job(running.job_id)
        assert (row.state, row.stop_reason, row.exit_code) == (State.SUPERSEDED, StopReason.SUPERSEDED, 0)


async def test_the_last_to_supersede_a_running_job_is_named(harness: Harness) -> None:
    async with harness.open() as opened:
        await insert(opened, about())
        [running] = await opened.claim()
        [first] = await insert(opened, about(on_duplicate=SUPERSEDE))
        [second] = await insert(opened, about(on_duplicate=SUPERSEDE_RUNNING))
        [third] = await insert(opened, about(on_duplicate=SUPERSEDE))
        assert [answer.superseded for answer in (first, second, third)] == [1, 2, 2]
        assert [len(answer.stopping) for answer in (first, second, third)] == [0, 1, 0]
        row = await opened.job(running.job_id)
        assert (row.superseded_by, row.stop_reason) == (third.job_id, StopReason.SUPERSEDED)
        assert (await opened.job(first.job_id)).superseded_by == second.job_id


async def test_a_cancel_is_not_lowered_by_superseding(harness: Harness) -> None:
    async with harness.open() as opened:
        await insert(opened, about())
        [running] = await opened.claim()
        await opened.cancel(job_id=running.job_id, grace_ms=10)
        [answer] = await insert(opened, about(on_duplicate=SUPERSEDE_RUNNING))
        assert [(r.reason, r.grace_ms) for r in answer.stopping] == [(StopReason.CANCEL, 10)]
        assert (await opened.job(running.job_id)).stop_reason is StopReason.CANCEL


async def test_thousands_for_a_busy_subject_leave_the_first_and_the_last(harness: Harness) -> None:
    """One by one, in batches, and in one batch."""
    async with harness.open() as opened:
        await insert(opened, about(max_attempts=5))
        [running] = await opened.claim()
        jobs = [about(on_duplicate=SUPERSEDE) for _ in range(1000)]
        cuts = [*range(100), *range(100, 500, 50), 500, 1000]
        for start, end in itertools.pairwise(cuts):
            await insert(opened, *jobs[start:end])
        assert await opened.counts() == {"RUNNING": 1, "SUPERSEDED": 999, "QUEUED": 1}
        stored = await opened.store.get_many([job.job_id for job in jobs])
        for older, newer in itertools.pairwise(jobs):
            assert stored[older.job_id].superseded_by == newer.job_id
        assert [stored[job.job_id].generation for job in jobs] == list(range(2, 1002))
        assert await opened.claim() == []
        await opened.finish(running, FAILED)
        assert [job.job_id for job in await opened.claim()] == [jobs[-1].job_id]
        assert (await opened.job(running.job_id)).state is State.SUPERSEDED


@pytest.mark.parametrize("stopped", [False, True])
async def test_join_answers_the_newest_that_will_do(harness: Harness, stopped: bool) -> None:
    join = OnDuplicate.JOIN
    async with harness.open() as opened:
        [first] = await insert(opened, about(on_duplicate=join))
        assert not first.deduplicated
        [joined] = await insert(opened, late := about(on_duplicate=join, queue="elsewhere"))
        assert (joined.job_id, joined.deduplicated, joined.queue) == (first.job_id, True, "default")
        assert await opened.store.get(late.job_id) is None
        [running] = await opened.claim()
        [joined] = await insert(opened, about(on_duplicate=join))
        assert (joined.job_id, joined.state, joined.generation) == (first.job_id, State.RUNNING, 1)
        if stopped:
            await opened.cancel(job_id=running.job_id)
        else:  # superseded by one that has ended
            [other] = await insert(opened, about(on_duplicate=SUPERSEDE))
            await opened.cancel(job_id=other.job_id)
        [behind] = await insert(opened, about(on_duplicate=join))
        assert (behind.deduplicated, behind.generation) == (False, 2 if stopped else 3)
        await insert(opened, newest := about(run_at=NOW + 99))
        [joined] = await insert(opened, about(on_duplicate=join))
        assert (joined.job_id, joined.state) == (newest.job_id, State.SCHEDULED)
        assert len(opened.commits[-1]) == 0


async def test_reject_takes_no_second_one(harness: Harness) -> None:
    reject = OnDuplicate.REJECT
    async with harness.open() as opened:
        [first] = await insert(opened, about(on_duplicate=reject))
        for _ in range(2):  # while it waits, and while it runs
            with pytest.raises(Conflict, match=first.job_id) as caught:
                await insert(opened, new_job(), about(on_duplicate=reject))
            assert caught.value.details == {"job_id": first.job_id, "index": 1, "subject_key": "s"}
            assert sum((await opened.counts()).values()) == 1
            await opened.claim()
        await opened.finish(await opened.job(first.job_id))
        [second] = await insert(opened, about(on_duplicate=reject))
        assert (second.state, second.generation) == (State.QUEUED, 2)


async def test_the_idempotency_key_is_looked_at_first(harness: Harness) -> None:
    async with harness.open() as opened:
        [first] = await insert(opened, about(idempotency_key="k"))
        for how in OnDuplicate:
            [answer] = await insert(opened, about(on_duplicate=how, idempotency_key="k"))
            assert (answer.job_id, answer.deduplicated, answer.superseded) == (first.job_id, True, 0)
        assert await opened.counts() == {"QUEUED": 1}
        assert (await opened.job(first.job_id)).superseded_by is None


async def test_one_batch_does_what_one_by_one_does(harness: Harness) -> None:
    """Every sequence of three ways to meet a sibling, in one request and in three."""
    ways = [SUPERSEDE, SUPERSEDE_RUNNING, OnDuplicate.JOIN, OnDuplicate.AFTER]
    fields = ("state", "generation", "end_cause", "finished_at", "claim_no", "stop_reason")
    async with harness.open() as opened:
        for number, sequence in enumerate(itertools.product([False, True], ways, ways, ways)):
            live, *hows = sequence
            results = []
            for name, together in ((f"a{number}", True), (f"b{number}", False)):
                jobs = [about(name, how, queue=name) for how in hows]
                before = about(name, queue=name, execution_mode=IN_PROCESS)
                if live:
                    await insert(opened, before)
                    await opened.claim([name], mode=IN_PROCESS)
                answers = await insert(opened, *jobs) if together else [(await insert(opened, job))[0] for job in jobs]
                place = {job.job_id: n for n, job in enumerate([before, *jobs])}
                stored = await opened.store.get_many(list(place))
                rows = [
                    (place[row.job_id], place.get(row.superseded_by or ""), *(getattr(row, f) for f in fields))
                    for row in sorted(stored.values(), key=lambda row: row.seq)
                ]
                changes = sorted(
                    (place[c.job_id], str(c.before), c.after, c.stop_reason)
                    for c in opened.changes
                    if c.job_id in place and c.queue == name
                )
                told = [(place[a.job_id], a.deduplicated, a.generation, a.superseded) for a in answers]
                results.append((rows, told, changes, [len(a.stopping) for a in answers], await opened.counts(name)))
            assert results[0] == results[1], sequence


async def test_a_batch_may_reject_itself(harness: Harness) -> None:
    async with harness.open() as opened:
        with pytest.raises(Conflict) as caught:
            await insert(opened, first := about(), about(on_duplicate=OnDuplicate.REJECT))
        assert caught.value.details == {"index": 1, "first_index": 0}
        assert "jobs[0] and jobs[1] of this request have the subject" in caught.value.message
        assert first.job_id not in caught.value.message  # it was never stored
        assert await opened.store.queues() == []


async def test_an_end_at_once_is_told_as_two_changes(harness: Harness) -> None:
    async with harness.open() as opened:
        await insert(opened, first := about(run_at=NOW + 9), second := about(on_duplicate=SUPERSEDE))
        assert seen(opened.changes) == [
            (first.job_id, None, State.SCHEDULED),
            (second.job_id, None, State.QUEUED),
            (first.job_id, State.SCHEDULED, State.SUPERSEDED),
        ]


# --- who runs next ---


async def test_a_lane_runs_in_order_one_at_a_time(harness: Harness) -> None:
    async with harness.open() as opened:
        jobs = [about(priority=priority) for priority in (0, 0, 5, -5, 0)]
        await insert(opened, *jobs)
        order = []
        for _ in jobs:
            [job] = await opened.claim(limit=5)
            assert await opened.claim() == []
            order.append([j.job_id for j in jobs].index(job.job_id))
            await opened.finish(job)
        assert order == [2, 0, 1, 4, 3]


async def test_others_pass_a_lane_that_cannot_go_on(harness: Harness) -> None:
    async with harness.open() as opened:
        await insert(opened, *(about(priority=9) for _ in range(5)))
        [running] = await opened.claim()
        await insert(opened, *(about(priority=9) for _ in range(5)), free := new_job())
        assert [job.job_id for job in await opened.claim()] == [free.job_id]
        await opened.finish(running)
        assert len(await opened.claim()) == 1


LEAVES = ["cancel", "cancel by tag", "ttl", "deadline", "claim", "finish"]


@pytest.mark.parametrize("leaves", LEAVES)
async def test_when_the_head_leaves_the_next_one_is_seen(harness: Harness, leaves: str) -> None:
    async with harness.open() as opened:
        head = about(tag="t", ttl_ms=5 if leaves == "ttl" else None, deadline=NOW + 5 if leaves == "deadline" else None)
        await insert(opened, head, second := about(), third := about())
        match leaves:
            case "cancel":
                await opened.cancel(job_id=head.job_id)
            case "cancel by tag":
                await opened.cancel(tag="t")
            case "ttl" | "deadline":
                assert (await opened.store.expire(NOW + 5, 10)).count == 1
            case _:
                [running] = await opened.claim()
                await opened.finish(running)
        for job in (second, third):
            [claimed] = await opened.claim(now=NOW + 5)
            assert claimed.job_id == job.job_id
            await opened.finish(claimed)


async def test_whoever_follows_a_job_that_is_over_is_told(harness: Harness) -> None:
    """A claim that came before the timer has found nothing, and nothing else would make the engine ask again."""
    async with harness.open() as opened:
        await insert(opened, over := about(ttl_ms=5), second := about(deadline=NOW + 90), third := about())
        assert await opened.claim(now=NOW + 5) == []
        await opened.store.expire(NOW + 5, 10)
        assert seen(opened.commits[-1]) == [
            (over.job_id, State.QUEUED, State.SKIPPED_TTL),
            (second.job_id, State.QUEUED, State.QUEUED),
        ]
        assert opened.commits[-1][1].expires_at == NOW + 90
        assert await opened.counts() == {"SKIPPED_TTL": 1, "QUEUED": 2}
        [job] = await opened.claim(now=NOW + 5)
        assert job.job_id == second.job_id
        await opened.store.expire(NOW + 500, 10)  # what runs is no concern of it
        assert opened.commits[-1] == []
        assert (await opened.job(third.job_id)).state is State.QUEUED


async def test_delayed_and_retried_jobs_take_their_place(harness: Harness) -> None:
    async with harness.open() as opened:
        delayed = [about(run_at=NOW + 5, priority=priority) for priority in (0, 3, 0)]
        await insert(opened, *delayed, first := about(max_attempts=2, retry_base_delay_ms=5), last := about())
        [running] = await opened.claim()
        assert running.job_id == first.job_id
        await opened.finish(running, FAILED, jitter=1.0)
        assert (await opened.store.promote(NOW + 5, 10)).count == 4
        order = []
        for _ in range(5):
            [job] = await opened.claim(now=NOW + 5)
            order.append(job.job_id)
            await opened.finish(job)
        assert order == [j.job_id for j in (delayed[1], delayed[0], delayed[2], first, last)]


async def test_a_paused_queue_and_another_mode_hold_no_sibling_up(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.store.configure_queue("paused", paused=True)
        await insert(opened, about(queue="paused"), about(execution_mode=IN_PROCESS), free := about())
        assert [job.job_id for job in await opened.claim(["paused", "default"])] == [free.job_id]
