"""A store against a small model of the queue, driven by hypothesis; some members of a batch are poisoned."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from semtask.errors import Conflict, DatabaseError
from semtask.model import outcome as outcomes
from semtask.model.job import Job, NewJob, OnDuplicate, OnInterrupt
from semtask.model.outcome import Outcome
from semtask.model.retry import decide
from semtask.model.state import FINAL, WAITING, State, StopReason, may_raise
from tests.store.harness import NOW, STORES, Harness, Opened, new_job

T = TypeVar("T")

QUEUES = st.sampled_from(["a", "b"])
OUTCOMES = st.sampled_from(
    [
        outcomes.of_command(0),
        outcomes.of_command(1 << 8),
        outcomes.of_command(9),
        outcomes.interrupted("the daemon died"),
        outcomes.never_ran("the daemon died first"),
        outcomes.no_room("EAGAIN"),
        outcomes.lost("the shim is gone"),
        outcomes.spawn_failed("no such program"),
    ]
)
JOBS = st.fixed_dictionaries(
    {
        "queue": QUEUES,
        "priority": st.integers(-1, 1),
        "max_attempts": st.integers(1, 3),
        "retry_on_crash": st.booleans(),
        "on_interrupt": st.sampled_from(list(OnInterrupt)),
        "run_at": st.none() | st.integers(NOW, NOW + 3),
        "tag": st.sampled_from([None, "t", "u"]),
        "subject_key": st.sampled_from([None, None, "s"]),
        "idempotency_key": st.sampled_from([None, None, None, "k", "l"]),
        "content_hash": st.sampled_from([b"one", b"one", b"two"]),
    }
)
POISON = st.sampled_from([None, None, None, None, "taken id", "own id twice", "bad priority"])


class Queues(RuleBasedStateMachine):
    """The model is `self.jobs` (rows by id), `self.keys` and `self.generation`; time only moves forward."""

    kind = STORES[0]

    @initialize()
    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.harness = Harness(self.kind, Path(self.folder.name))
        self.stack = AsyncExitStack()
        self.opened: Opened = self.do(self.stack.enter_async_context(self.harness.open()))
        self.jobs: dict[str, Job] = {}
        self.attempts: Counter[str] = Counter()
        self.paused: set[str] = set()
        self.generation = 0
        self.now = NOW
        self.seen: list[Any] = []

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.do(self.stack.aclose())
            self.do(self.loop.shutdown_default_executor())
            self.loop.close()
            self.folder.cleanup()

    # --- rules ---

    @rule(batches=st.lists(st.tuples(st.lists(JOBS, min_size=1, max_size=3), POISON), min_size=1, max_size=4))
    def insert(self, batches: list[tuple[list[dict[str, Any]], str | None]]) -> None:
        """All at once, so that they share ticks: a poisoned one must fail alone."""
        requests = [self.poisoned([self.make(fields) for fields in batch], poison) for batch, poison in batches]

        async def all_at_once() -> list[Any]:
            return await asyncio.gather(
                *(self.opened.store.insert(jobs, durable=True) for jobs in requests), return_exceptions=True
            )

        for jobs, answer in zip(requests, self.do(all_at_once()), strict=True):
            self.expect_inserted(jobs, answer)

    @rule(limit=st.integers(0, 3), slots=st.dictionaries(QUEUES, st.integers(0, 2)))
    def claim(self, limit: int, slots: dict[str, int]) -> None:
        claimed = self.do(self.opened.claim(slots, limit=limit, now=self.now))
        expected: list[str] = []
        for job in self.ready():
            if len(expected) < limit and slots.get(job.queue, 0) > 0 and not self.sibling_runs(job):
                slots[job.queue] -= 1
                expected.append(job.job_id)
                self.jobs[job.job_id] = msgspec.structs.replace(job, state=State.RUNNING, claim_no=job.claim_no + 1)
        assert [job.job_id for job in claimed] == expected

    @rule(pick=st.integers(0), outcome=OUTCOMES, jitter=st.floats(0.9, 1.1))
    def finish(self, pick: int, outcome: Outcome, jitter: float) -> None:
        job = self.pick(pick, State.RUNNING)
        if job is None:
            return
        before = self.do(self.opened.job(job.job_id))
        assert (before.state, before.claim_no, before.stop_reason) == (job.state, job.claim_no, job.stop_reason)
        expected = decide(before, outcome, jitter=jitter)
        finished = self.do(self.opened.finish(job, outcome, now=self.now, jitter=jitter))
        assert finished.decision == expected
        final = expected.state in FINAL
        self.jobs[job.job_id] = msgspec.structs.replace(
            job,
            state=expected.state,
            stop_reason=job.stop_reason if final else None,
            run_at=self.now + expected.delay_ms if expected.state is State.SCHEDULED else job.run_at,
        )
        self.attempts[job.job_id] += int(outcome.executed)

    @rule(pick=st.integers(0), older=st.integers(0, 2))
    def late_report(self, pick: int, older: int) -> None:
        """Of an older claim, or of a job that does not run."""
        job = self.pick(pick, *State)
        if job is None or (job.state is State.RUNNING and older == 0):
            return
        stale = msgspec.structs.replace(job, claim_no=job.claim_no - older)
        assert (
            self.do(self.opened.finish(stale, outcomes.of_command(0), claim_no=stale.claim_no or 99)).decision is None
        )

    @rule(pick=st.integers(0), reason=st.sampled_from(list(StopReason)), tag=st.none() | st.sampled_from(["t", "u"]))
    def stop(self, pick: int, reason: StopReason, tag: str | None) -> None:
        job = self.pick(pick, *State)
        if tag is None and job is None:
            return
        selector: dict[str, Any]
        if tag is None:
            assert job is not None
            selector, named = {"job_id": job.job_id}, [job]
        else:
            selector, named = {"tag": tag}, [j for j in self.jobs.values() if j.tag == tag]
        stopped = self.do(self.opened.stop(reason, now=self.now, **selector))
        ended = 0
        for job in named:
            if job.state in WAITING and reason is StopReason.CANCEL:
                ended += 1
                self.jobs[job.job_id] = msgspec.structs.replace(job, state=State.CANCELLED)
            elif job.state is State.RUNNING and may_raise(job.stop_reason, reason):
                self.jobs[job.job_id] = msgspec.structs.replace(job, stop_reason=reason)
        running = [j.job_id for j in named if j.state is State.RUNNING]
        assert (stopped.found, stopped.ended) == (len(named), ended)
        assert [r.job_id for r in stopped.stopping] == running
        assert all(r.reason is self.jobs[r.job_id].stop_reason for r in stopped.stopping)

    @rule(wait=st.integers(0, 3), limit=st.integers(0, 3))
    def promote(self, wait: int, limit: int) -> None:
        self.now += wait
        scheduled = [job for job in self.jobs.values() if job.state is State.SCHEDULED]
        due = sorted((j for j in scheduled if self.due(j) <= self.now), key=lambda j: (self.due(j), j.seq))[:limit]
        for job in due:
            self.jobs[job.job_id] = msgspec.structs.replace(job, state=State.QUEUED)
        promoted = self.do(self.opened.store.promote(self.now, limit))
        assert promoted.count == len(due)
        left = [self.due(job) for job in self.jobs.values() if job.state is State.SCHEDULED]
        assert promoted.next_due == min(left, default=None)

    @rule(queue=QUEUES, paused=st.booleans())
    def pause(self, queue: str, paused: bool) -> None:
        assert self.do(self.opened.store.configure_queue(queue, paused=paused)).paused is paused
        (self.paused.add if paused else self.paused.discard)(queue)

    @rule()
    def restart(self) -> None:
        self.do(self.stack.aclose())
        self.seen += self.opened.changes
        self.opened = self.do(self.stack.enter_async_context(self.harness.open()))

    # --- what must hold after each ---

    @invariant()
    def rows_agree(self) -> None:
        stored = self.do(self.opened.store.get_many(list(self.jobs)))
        for job_id, job in self.jobs.items():
            for name in ("state", "claim_no", "stop_reason", "run_at", "generation", "queue"):
                assert getattr(stored[job_id], name) == getattr(job, name), name
        assert [j.job_id for j in self.do(self.opened.store.running())] == [
            j.job_id for j in self.jobs.values() if j.state is State.RUNNING
        ]

    @invariant()
    def attempts_agree(self) -> None:
        for job_id, count in self.attempts.items():
            assert len(self.do(self.opened.store.attempts(job_id))) == count

    @invariant()
    def counters_agree(self) -> None:
        counted = Counter((job.queue, job.state) for job in self.jobs.values())
        for queue in self.do(self.opened.store.queues()):
            assert queue.counts == {state: counted[queue.name, state] for state in State}
            assert queue.paused == (queue.name in self.paused)

    @invariant()
    def changes_agree(self) -> None:
        """They lead, one after the other, from nothing to the present states."""
        states: dict[str, State] = {}
        for change in self.seen + self.opened.changes:
            assert states.get(change.job_id) is change.before
            states[change.job_id] = change.after
        assert states == {job_id: job.state for job_id, job in self.jobs.items()}

    # --- the model ---

    def make(self, fields: dict[str, Any]) -> NewJob:
        return new_job(**fields, on_duplicate=OnDuplicate.AFTER if fields["subject_key"] else None)

    def poisoned(self, jobs: list[NewJob], poison: str | None) -> list[NewJob]:
        match poison:
            case "taken id" if self.jobs:
                return [*jobs, new_job(job_id=next(iter(self.jobs)))]
            case "own id twice":
                return [*jobs, twice := new_job(), twice]
            case "bad priority":
                return [*jobs, new_job(priority=101)]
        return jobs

    def expect_inserted(self, jobs: list[NewJob], answer: Any) -> None:
        by_key = {job.idempotency_key: job for job in self.jobs.values() if job.idempotency_key is not None}
        fresh: dict[str, Job] = {}
        generation = self.generation
        for job in jobs:
            stored = by_key.get(job.idempotency_key) if job.idempotency_key else None
            if stored is not None and stored.content_hash != job.content_hash:
                assert isinstance(answer, Conflict)
                assert answer.details["job_id"] == stored.job_id
                return
            if stored is not None:
                continue
            if job.job_id in self.jobs or job.job_id in fresh or job.priority > 100:
                assert isinstance(answer, Conflict | DatabaseError)
                return
            generation += job.subject_key is not None
            row = self.row(job, generation)
            fresh[job.job_id] = row
            if job.idempotency_key:
                by_key[job.idempotency_key] = row
        assert not isinstance(answer, BaseException), answer
        for job, inserted in zip(jobs, answer, strict=True):
            known = by_key.get(job.idempotency_key) if job.idempotency_key else None
            assert inserted.job_id == (known.job_id if known else job.job_id)
            assert inserted.deduplicated == (inserted.job_id != job.job_id)
        self.jobs |= fresh
        self.generation = generation

    def row(self, job: NewJob, generation: int) -> Job:
        waits = job.run_at is not None and job.run_at > job.created_at
        shared = {name: getattr(job, name) for name in NewJob.__struct_fields__ if name in Job.__struct_fields__}
        return Job(
            **shared,
            seq=len(self.jobs),
            state=State.SCHEDULED if waits else State.QUEUED,
            generation=generation if job.subject_key else None,
        )

    def ready(self) -> list[Job]:
        order = {job_id: n for n, job_id in enumerate(self.jobs)}
        queued = [job for job in self.jobs.values() if job.state is State.QUEUED and job.queue not in self.paused]
        return sorted(queued, key=lambda job: (-job.priority, order[job.job_id]))

    def sibling_runs(self, job: Job) -> bool:
        return job.subject_key is not None and any(
            other.state is State.RUNNING and other.subject_key == job.subject_key for other in self.jobs.values()
        )

    def pick(self, number: int, *states: State) -> Job | None:
        found = [job for job in self.jobs.values() if job.state in states]
        return found[number % len(found)] if found else None

    @staticmethod
    def due(job: Job) -> int:
        assert job.run_at is not None
        return job.run_at


@pytest.mark.timeout(400)  # a failing example takes hypothesis a while to make small
@pytest.mark.parametrize("kind", STORES)
def test_a_store_behaves_like_the_model(kind: str) -> None:
    machine = type("Machine", (Queues,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
