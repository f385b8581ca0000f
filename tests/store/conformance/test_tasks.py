"""Tasks: claims for workers, what is set aside, and ends by the dozen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from semtask.model import outcome as outcomes
from semtask.model.job import ClaimFacts, Job, NewJob, OnDuplicate, OnInterrupt, ProgressNote, Taker
from semtask.model.outcome import Outcome
from semtask.model.state import EndCause, State, StopReason
from semtask.store.requests import Finish, Finished, TaskClaim, TaskClaimed
from tests.store.harness import IN_PROCESS, NOW, Harness, Opened, new_job, seen


def task(name: str = "t", **fields: Any) -> NewJob:
    defaults = {"job_type": name, "execution_mode": IN_PROCESS, "on_interrupt": OnInterrupt.REQUEUE}
    return new_job(**{**defaults, "payload": "{}", **fields})


def facts_of(worker: str) -> ClaimFacts:
    return ClaimFacts(daemon_epoch=1, boot_id="boot", attempts_id="attempts", nonce=f"{worker}.1", worker=worker)


def idle(worker: str = "w", limit: int = 1, tasks: Sequence[str] = ("t",)) -> Taker:
    return Taker(facts=facts_of(worker), tasks=frozenset(tasks), limit=limit)


def ahead(
    worker: str = "w", limit: int = 9, tasks: Sequence[str] = ("t",), queues: Sequence[str] | None = None
) -> Taker:
    held = None if queues is None else frozenset(queues)
    return Taker(facts=facts_of(worker), tasks=frozenset(tasks), limit=limit, ahead=True, queues=held)


async def claim(
    opened: Opened,
    *takers: Taker,
    queues: Mapping[str, int] | None = None,
    offered: Sequence[str] = ("t", "u"),
    rooms: Mapping[str, int] | None = None,
    now: int = NOW,
) -> TaskClaimed:
    request = TaskClaim(
        queues={"default": 9} if queues is None else queues,
        takers=takers,
        offered=frozenset(offered),
        rooms=rooms or {},
        now=now,
        node_id="node",
    )
    return await opened.store.claim_tasks(request)


def ids(jobs: Sequence[Job | NewJob]) -> list[str]:
    return [job.job_id for job in jobs]


def by_taker(claimed: TaskClaimed) -> list[list[str]]:
    return [ids(jobs) for jobs in claimed.jobs]


# --- who takes what ---


async def test_a_claim_fills_the_row_and_is_told(harness: Harness) -> None:
    async with harness.open() as opened:
        rich = task(
            created_at=NOW - 1, run_at=NOW - 2, priority=3, max_attempts=4, backoff_factor=1.5,
            retry_base_delay_ms=5, retry_max_delay_ms=6, timeout_ms=7, grace_ms=8, deadline=NOW + 9, ttl_ms=10,
            subject_key="subject", on_duplicate=OnDuplicate.AFTER, tag="tag", chain_group_id="group",
            parent_job_id=new_job().job_id, retry_of=new_job().job_id, trace_context="trace", idempotency_key="key",
            content_hash=b"hash", retry_on_crash=True, on_interrupt=OnInterrupt.FAIL, payload='{"a":1}',
        )  # fmt: skip
        await opened.insert(rich, task())
        claimed = await claim(opened, idle(limit=2), now=NOW + 7)
        [jobs] = claimed.jobs
        for job in jobs:
            assert (job.state, job.claim_no, job.started_at, job.node_id) == (State.RUNNING, 1, NOW + 7, "node")
            assert job.claim == facts_of("w")
            assert await opened.job(job.job_id) == job
        assert seen(opened.commits[-1]) == [(job.job_id, State.QUEUED, State.RUNNING) for job in jobs]
        assert await opened.counts() == {"RUNNING": 2}


async def test_the_best_jobs_go_to_the_takers_in_their_order(harness: Harness) -> None:
    jobs = [task(priority=priority, queue=queue) for priority, queue in [(0, "a"), (9, "b"), (5, "a"), (9, "a")]]
    async with harness.open() as opened:
        await opened.insert(*jobs)
        claimed = await claim(opened, idle("v"), idle("w", limit=2), queues={"a": 9, "b": 9})
        assert by_taker(claimed) == [[jobs[1].job_id], [jobs[3].job_id, jobs[2].job_id]]
        assert claimed.jobs[1][0].claim == facts_of("w")


async def test_a_worker_gets_only_what_its_app_has(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(first := task("t"), second := task("u"), third := task("t"))
        claimed = await claim(opened, idle("v", 9, ["u"]), idle("w", 9, ["t"]))
        assert by_taker(claimed) == [[second.job_id], [first.job_id, third.job_id]]


async def test_commands_are_not_for_workers(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(new_job(job_type="t"))
        assert by_taker(await claim(opened, idle())) == [[]]
        assert len(await opened.claim()) == 1


async def test_slots_hold_for_all_takers_together_and_work_ahead_costs_none(harness: Harness) -> None:
    jobs = [task(queue=queue) for queue in "aaaabb"]
    async with harness.open() as opened:
        await opened.insert(*jobs)
        claimed = await claim(opened, idle("v", 100), idle("w"), ahead("x", 2, queues=["a"]), queues={"a": 1, "b": 1})
        assert by_taker(claimed) == [ids([jobs[0], jobs[4]]), [], ids(jobs[1:3])]


async def test_of_a_queue_without_slots_only_work_ahead_is_taken_and_of_others_nothing(harness: Harness) -> None:
    jobs = [task(queue=queue) for queue in "abc"]
    async with harness.open() as opened:
        await opened.insert(*jobs)
        takers = [idle("v"), ahead(queues=["a", "c"])]
        assert by_taker(await claim(opened, *takers, queues={"a": 0, "b": 0})) == [[], [jobs[0].job_id]]


async def test_a_worker_that_was_idle_takes_ahead_of_the_queue_of_its_first_job(harness: Harness) -> None:
    jobs = [task(queue=queue) for queue in "abab"]
    async with harness.open() as opened:
        await opened.insert(*jobs)
        claimed = await claim(opened, idle("v"), idle("w"), ahead("v"), ahead("w"), queues={"a": 9, "b": 9})
        assert by_taker(claimed) == [[job.job_id] for job in jobs]


async def test_what_starts_once_and_what_has_a_subject_is_never_taken_ahead(harness: Harness) -> None:
    once = task(on_interrupt=OnInterrupt.FAIL)
    lane = task(subject_key="s", on_duplicate=OnDuplicate.AFTER)
    async with harness.open() as opened:
        await opened.insert(once, lane, plain := task())
        assert by_taker(await claim(opened, ahead(queues=["default"]))) == [[plain.job_id]]
        assert by_taker(await claim(opened, idle(limit=9))) == [ids([once, lane])]


async def test_a_paused_queue_and_a_job_over_its_time_are_left(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(task(queue="a"), task(ttl_ms=1), task(deadline=NOW), task(run_at=NOW + 9))
        await opened.store.configure_queue("a", paused=True)
        claimed = await claim(opened, idle(limit=9), queues={"a": 9, "default": 9}, now=NOW + 1)
        assert claimed == TaskClaimed(jobs=[[]])


async def test_one_job_of_a_subject_at_a_time_over_all_takers(harness: Harness) -> None:
    lane = {"subject_key": "s", "on_duplicate": OnDuplicate.AFTER}
    jobs = [task(**lane, queue="a"), task(**lane, queue="a"), task(**lane, queue="b", priority=-1), task("u", **lane)]
    async with harness.open() as opened:
        await opened.insert(*jobs)
        takers = [idle("v", 9), idle("w", 9, ["t", "u"])]
        claimed = await claim(opened, *takers, queues={"a": 9, "b": 9, "default": 9})
        assert by_taker(claimed) == [[jobs[0].job_id], [jobs[3].job_id]]
        await opened.finish(claimed.jobs[0][0])
        claimed = await claim(opened, *takers, queues={"a": 9, "b": 9})
        assert by_taker(claimed) == [[jobs[1].job_id], []]


# --- what nobody can take ---


async def test_what_could_run_but_finds_no_taker_is_told(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(task("u"), task(), task(), last := task("u", queue="b"))
        claimed = await claim(opened, idle())
        assert (len(claimed.jobs[0]), claimed.unserved) == (1, frozenset({"t", "u"}))
        assert not claimed.set_aside
        claimed = await claim(opened, idle(tasks=["u"]), queues={"b": 1, "default": 0})
        assert (by_taker(claimed), claimed.unserved) == ([[last.job_id]], frozenset())
        assert (await claim(opened)).unserved == {"t", "u"}  # without any taker
        claimed = await claim(opened, ahead(tasks=["t"], queues=["default"], limit=9), queues={"default": 0})
        assert claimed.unserved == frozenset()  # without a slot it could not run


async def test_jobs_of_a_busy_app_hide_no_others(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(*(task("u") for _ in range(900)), mine := task())
        assert by_taker(await claim(opened, idle(), queues={"default": 2000})) == [[mine.job_id]]


async def test_what_nobody_offers_is_set_aside_until_it_is_brought_back(harness: Harness) -> None:
    jobs = [task("new", priority=priority) for priority in (0, 5, 0)]
    async with harness.open() as opened:
        await opened.insert(*jobs, other := task(priority=-1))
        claimed = await claim(opened, idle(limit=9, tasks=["t", "new"]))
        assert (by_taker(claimed), claimed.set_aside) == ([[other.job_id]], frozenset({"new"}))
        assert await opened.store.aside() == {"new"}
        assert await opened.counts() == {"QUEUED": 3, "RUNNING": 1}
    async with harness.open() as opened:  # it outlasts the daemon
        assert await opened.store.aside() == {"new"}
        claimed = await claim(opened, idle(limit=9, tasks=["new"]), offered=["new"])
        assert (by_taker(claimed), claimed.set_aside) == ([[]], frozenset())
        assert await opened.store.bring_back("new", 2) == 2
        assert sorted(seen(opened.commits[-1])) == sorted((jobs[n].job_id, State.QUEUED, State.QUEUED) for n in (1, 0))
        claimed = await claim(opened, idle(limit=9, tasks=["new"]), offered=["new"])
        assert by_taker(claimed) == [ids([jobs[1], jobs[0]])]
        assert await opened.store.bring_back("new", 100) == 1
        assert await opened.store.bring_back("new", 100) == 0
        assert await opened.store.aside() == frozenset()
        assert by_taker(await claim(opened, idle(tasks=["new"]), offered=["new"])) == [[jobs[2].job_id]]


async def test_a_task_without_room_is_set_aside(harness: Harness) -> None:
    jobs = [task(), task(), task("u"), task()]
    async with harness.open() as opened:
        await opened.insert(*jobs)
        claimed = await claim(opened, idle(limit=9, tasks=["t", "u"]), rooms={"t": 1})
        assert (by_taker(claimed), claimed.set_aside) == ([ids([jobs[0], jobs[2]])], frozenset({"t"}))
        assert await opened.store.bring_back("t", 1) == 1
        claimed = await claim(opened, idle(limit=9), rooms={"t": 1})
        assert (by_taker(claimed), claimed.set_aside) == ([[jobs[1].job_id]], frozenset())


async def test_many_jobs_to_set_aside_hide_no_others(harness: Harness) -> None:
    async with harness.open() as opened:
        await opened.insert(*(task(name) for name in ("x", "y", "z") for _ in range(900)), mine := task())
        set_aside: set[str] = set()
        for _ in range(3):  # as the dispatcher does, with what is offered by then
            claimed = await claim(opened, idle())
            set_aside |= claimed.set_aside
            if any(claimed.jobs):
                break
        assert (by_taker(claimed), set_aside) == ([[mine.job_id]], {"x", "y", "z"})
        assert await opened.store.bring_back("y", 10_000) == 900


async def test_a_claim_with_an_old_offer_does_not_undo_what_is_brought_back_for_ever(harness: Harness) -> None:
    """Both move as many jobs in one tick, by turns: each must come to an end, whatever the other does."""
    async with harness.open() as opened:
        await opened.insert(*(task("late") for _ in range(2000)))
        first = await claim(opened, idle(tasks=["t"]), offered=["t"])
        assert first.set_aside == {"late"}

        async def bring_all_back() -> None:
            while await opened.store.bring_back("late", 1000) == 1000:  # as the engine does
                pass

        async with asyncio.timeout(30):
            old = claim(opened, idle(tasks=["t"]), offered=["t"])
            await asyncio.gather(bring_all_back(), old)


@pytest.mark.parametrize("how", ["cancel", "supersede", "ttl", "deadline"])
async def test_what_is_set_aside_can_still_end(harness: Harness, how: str) -> None:
    lane = {"subject_key": "s", "on_duplicate": OnDuplicate.AFTER}
    async with harness.open() as opened:
        await opened.insert(job := task(ttl_ms=5, **lane), second := task(**lane))
        await opened.insert(job_with_deadline := task(deadline=NOW + 5))
        await claim(opened, offered=())
        match how:
            case "cancel":
                await opened.cancel(job_id=job.job_id)
            case "supersede":
                await opened.insert(task(subject_key="s", on_duplicate=OnDuplicate.SUPERSEDE))
            case _:
                await opened.store.expire(NOW + 5, 100)
                assert (await opened.job(job_with_deadline.job_id)).state is State.SKIPPED_DEADLINE
        ended = await opened.job(job.job_id)
        expected = {"cancel": State.CANCELLED, "supersede": State.SUPERSEDED}
        assert ended.state is expected.get(how, State.SKIPPED_TTL)
        if how != "supersede":  # the one behind it in its lane has its place now
            assert by_taker(await claim(opened, idle())) == [[second.job_id]]


async def test_a_lane_keeps_its_order_when_its_head_is_set_aside(harness: Harness) -> None:
    lane = {"subject_key": "s", "on_duplicate": OnDuplicate.AFTER}
    async with harness.open() as opened:
        await opened.insert(low := task(**lane), high := task(**lane, priority=5))
        assert (await claim(opened, offered=())).set_aside == {"t"}
        await opened.insert(last := task(**lane), higher := task(**lane, priority=9))
        assert (await claim(opened, idle(), rooms={"t": 0})).set_aside == {"t"}
        order = []
        for _ in range(4):
            await opened.store.bring_back("t", 1)
            [[job]] = (await claim(opened, idle(limit=9))).jobs
            order.append(job.job_id)
            await opened.finish(job)
        assert order == ids([higher, high, low, last])


# --- ends ---


SUCCESS = outcomes.success(result='{"n":1}', artifacts="[]", progress='{"done":2}')
FAILED = outcomes.exception("boom", exception='{"type":"ValueError"}')


def finish_of(job: Job, outcome: Outcome = SUCCESS, **fields: Any) -> Finish:
    report = Finish(job_id=job.job_id, claim_no=job.claim_no, outcome=outcome, now=NOW + 50, jitter=1.0)
    return msgspec.structs.replace(report, **fields)


async def running(opened: Opened, *jobs: NewJob) -> list[Job]:
    """The same jobs, claimed, in the same order."""
    await opened.insert(*jobs)
    [claimed] = (await claim(opened, idle(limit=100), queues={"default": 100})).jobs
    claimed = [*claimed, *await opened.claim()]
    return sorted(claimed, key=lambda job: ids(jobs).index(job.job_id))


async def test_many_ends_are_the_same_as_one_after_the_other(harness: Harness) -> None:
    """Rows, attempts, counts, changes and answers, for quick and other ends."""
    reports = [SUCCESS, FAILED, outcomes.success(), outcomes.snoozed(5), outcomes.cancelled("no"), SUCCESS, SUCCESS]
    found = []
    for together in (True, False):
        place = Harness(harness.kind, harness.folder / str(together))
        place.folder.mkdir()
        async with place.open() as opened:
            fields: list[dict[str, Any]] = [{"max_attempts": 2}, {"max_attempts": 2}, {}, {}, {"priority": 1}]
            lane = {"subject_key": "s", "on_duplicate": OnDuplicate.AFTER}
            jobs = await running(opened, *(task(**one) for one in [*fields, lane]), new_job())
            await opened.store.record_progress([ProgressNote(job_id=jobs[2].job_id, claim_no=1, progress="0.5")])
            await opened.stop(StopReason.TIMEOUT, job_id=jobs[0].job_id)
            finishes = [finish_of(job, outcome) for job, outcome in zip(jobs, reports, strict=True)]
            told = len(opened.changes)
            if together:
                answers = await opened.store.finish_many(finishes)
            else:
                answers = [await opened.store.finish(finish) for finish in finishes]
            number = {job.job_id: n for n, job in enumerate(jobs)}
            changes = [(number[c.job_id], msgspec.structs.replace(c, job_id="")) for c in opened.changes[told:]]
            rows = [msgspec.structs.replace(await opened.job(job.job_id), job_id="", claim=None) for job in jobs]
            attempts = [await opened.store.attempts(job.job_id) for job in jobs]
            found.append((answers, sorted(changes, key=lambda c: c[0]), rows, attempts, await opened.counts()))
    assert found[0] == found[1]
    _, _, rows, attempts, _ = found[0]
    assert [row.state for row in rows] == [
        State.SCHEDULED, State.SCHEDULED, State.DONE, State.SCHEDULED, State.CANCELLED, State.DONE, State.DONE
    ]  # fmt: skip
    assert (rows[5].result, rows[5].artifacts, rows[5].progress) == ('{"n":1}', "[]", '{"done":2}')
    assert (rows[5].finished_at, rows[5].end_cause, rows[5].attempts) == (NOW + 50, EndCause.SUCCESS, 1)
    assert (rows[1].exception, rows[1].error) == ('{"type":"ValueError"}', "boom")
    assert (rows[0].result, rows[2].progress) == (None, "0.5")
    assert [len(found) for found in attempts] == [1, 1, 0, 0, 1, 0, 1]


async def test_of_many_ends_only_those_of_the_present_claims_count(harness: Harness) -> None:
    async with harness.open() as opened:
        jobs = await running(opened, *(task() for _ in range(4)))
        await opened.finish(jobs[1], FAILED)
        told = len(opened.changes)
        done = await opened.job(jobs[1].job_id)
        answers = await opened.store.finish_many(
            [
                finish_of(jobs[0], claim_no=2),
                finish_of(jobs[1]),
                finish_of(jobs[2], job_id=new_job().job_id),
                finish_of(jobs[3]),
                finish_of(jobs[3]),
            ]
        )
        assert [answer.decision is not None for answer in answers] == [False, False, False, True, False]
        assert seen(opened.changes[told:]) == [(jobs[3].job_id, State.RUNNING, State.DONE)]
        assert await opened.job(jobs[1].job_id) == done
        assert await opened.counts() == {"RUNNING": 2, "FAILED": 1, "DONE": 1}


async def test_a_superseded_task_that_succeeds_is_done(harness: Harness) -> None:
    async with harness.open() as opened:
        jobs = await running(opened, task(subject_key="s", on_duplicate=OnDuplicate.AFTER), task())
        await opened.insert(task(subject_key="s", on_duplicate=OnDuplicate.SUPERSEDE))
        await opened.store.finish_many([finish_of(job) for job in jobs])
        assert [(await opened.job(job.job_id)).state for job in jobs] == [State.DONE, State.DONE]


@pytest.mark.parametrize("poisoned", [outcomes.success(result="\udc00"), outcomes.exception("\udc00")])
async def test_an_end_that_cannot_be_stored_fails_its_job_and_no_other(harness: Harness, poisoned: Outcome) -> None:
    async with harness.open() as opened:
        jobs = await running(opened, *(task(max_attempts=3) for _ in range(3)))
        told = len(opened.changes)
        answers = await opened.store.finish_many(
            [finish_of(jobs[0]), finish_of(jobs[1], poisoned), finish_of(jobs[2], FAILED)]
        )
        rows = [await opened.job(job.job_id) for job in jobs]
        assert [row.state for row in rows] == [State.DONE, State.FAILED, State.SCHEDULED]
        assert "could not be stored" in str(rows[1].error)
        assert [answer.decision and answer.decision.state for answer in answers] == [row.state for row in rows]
        assert len(opened.changes) == told + 3
        assert await opened.counts() == {"DONE": 1, "FAILED": 1, "SCHEDULED": 1}


async def test_the_last_exception_is_kept_until_the_next_claim(harness: Harness) -> None:
    async with harness.open() as opened:
        [job] = await running(opened, task(max_attempts=2, retry_base_delay_ms=0))
        await opened.store.finish_many([finish_of(job, msgspec.structs.replace(FAILED, artifacts='["a"]'))])
        waiting = await opened.job(job.job_id)
        assert (waiting.exception, waiting.artifacts, waiting.error) == (FAILED.exception, '["a"]', "boom")
        await opened.store.promote(NOW + 50, 1)
        [[again]] = (await claim(opened, idle())).jobs
        assert again == await opened.job(job.job_id)
        assert (again.exception, again.artifacts, again.error, again.result) == (None, None, None, None)


async def test_progress_of_the_present_claim_only(harness: Harness) -> None:
    async with harness.open() as opened:
        first, second, third = await running(opened, *(task(max_attempts=2) for _ in range(3)))
        notes = [(first.job_id, 1, "1"), (second.job_id, 2, "2"), (new_job().job_id, 1, "3"), (first.job_id, 1, "4")]
        await opened.store.record_progress([ProgressNote(job_id=j, claim_no=n, progress=p) for j, n, p in notes])
        await opened.store.finish_many([finish_of(third, outcomes.success())])
        await opened.store.record_progress([ProgressNote(job_id=third.job_id, claim_no=1, progress="9")])
        assert [(await opened.job(job.job_id)).progress for job in (first, second, third)] == ["4", None, None]
        await opened.store.finish_many([finish_of(first, outcomes.interrupted("the daemon stopped"))])
        assert (await opened.job(first.job_id)).progress == "4"
        [[again]] = (await claim(opened, idle())).jobs
        assert (again.job_id, again.progress) == (first.job_id, None)


async def test_a_snoozed_task_has_no_row_for_each_of_its_naps(harness: Harness) -> None:
    async with harness.open() as opened:
        [job] = await running(opened, task())
        for nap in range(1, 4):
            [finished] = await opened.store.finish_many([finish_of(job, outcomes.snoozed(10), now=NOW)])
            assert finished == Finished(decision=finished.decision)
            row = await opened.job(job.job_id)
            assert (row.state, row.run_at, row.attempts, row.failures) == (State.SCHEDULED, NOW + 10, nap, 0)
            await opened.store.promote(NOW + 10, 1)
            [[job]] = (await claim(opened, idle())).jobs
        assert await opened.store.attempts(job.job_id) == []


async def test_a_displaced_task_is_given_back(harness: Harness) -> None:
    async with harness.open() as opened:
        twice, once = await running(opened, task(), task(on_interrupt=OnInterrupt.FAIL))
        outcome = outcomes.displaced("another job crashed its worker")
        await opened.store.finish_many([finish_of(twice, outcome), finish_of(once, outcome)])
        back, over = await opened.job(twice.job_id), await opened.job(once.job_id)
        assert (back.state, back.claim_no, back.attempts, back.started_at) == (State.QUEUED, 1, 0, None)
        assert (over.state, over.end_cause, over.attempts) == (State.FAILED, EndCause.INTERRUPTED, 1)
        assert await opened.store.attempts(back.job_id) == []
        assert len(await opened.store.attempts(over.job_id)) == 1
