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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from semtask.errors import Conflict, DatabaseError
from semtask.model import outcome as outcomes
from semtask.model.job import ClaimFacts, ExecutionMode, Job, NewJob, OnDuplicate, OnInterrupt, Taker
from semtask.model.outcome import FailureClass, Outcome
from semtask.model.retry import Decision, decide
from semtask.model.schedule import expires_at
from semtask.model.state import FINAL, WAITING, Event, State, StopReason, may_raise
from semtask.store.requests import PASSED_OVER, PASSED_OVER_WHEN_FULL, Finish, Purge, TaskClaim
from tests.store.harness import IN_PROCESS, NOW, STORES, SUBPROCESS, Harness, Opened, new_job

T = TypeVar("T")


def facts_of(worker: str) -> ClaimFacts:
    return ClaimFacts(daemon_epoch=1, boot_id="b", attempts_id="a", nonce=worker, worker=worker)


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
        outcomes.success(result="1"),
        outcomes.success(result="1"),
        outcomes.exception("boom", delay_ms=1),
        outcomes.snoozed(2),
        outcomes.displaced("another job crashed"),
    ]
)
TASKS = st.sampled_from(["t", "u"])
JOBS = st.fixed_dictionaries(
    {
        "queue": QUEUES,
        "job_type": TASKS,
        "execution_mode": st.sampled_from([SUBPROCESS, IN_PROCESS, IN_PROCESS]),
        "priority": st.integers(-1, 1),
        "max_attempts": st.integers(1, 3),
        "retry_on_crash": st.booleans(),
        "on_interrupt": st.sampled_from(list(OnInterrupt)),
        "run_at": st.sampled_from([None, None, None, 0, 1, 3]),  # from now
        "ttl_ms": st.sampled_from([None, None, None, None, 0, 1, 4]),
        "deadline": st.sampled_from([None, None, None, None, 0, 2, 5]),  # from now
        "tag": st.sampled_from([None, "t", "u"]),
        "subject_key": st.sampled_from([None, "s", "s", "t"]),
        "on_duplicate": st.sampled_from([OnDuplicate.AFTER, *OnDuplicate]),
        "parent": st.none() | st.integers(0, 9),
        "idempotency_key": st.sampled_from([None, None, None, "k", "l"]),
        "content_hash": st.sampled_from([b"one", b"one", b"two"]),
    }
)
TAKERS = st.builds(
    Taker,
    facts=st.sampled_from([facts_of("v"), facts_of("w")]),
    tasks=st.sampled_from([frozenset("tu"), frozenset("t")]),
    limit=st.sampled_from([3, 2, 1, 0]),
    ahead=st.booleans(),
    queues=st.sampled_from([None, frozenset("ab"), frozenset("a")]),
)
SLOTS = st.dictionaries(QUEUES, st.sampled_from([2, 1, 0]), min_size=1)
SLOTS_OF_TASKS = st.dictionaries(TASKS, st.sampled_from([2, 1, 0]))
OFFERED = st.sampled_from([frozenset("tu"), frozenset("tu"), frozenset("t"), frozenset[str]()])
POISON = st.sampled_from([None, None, None, None, "taken id", "own id twice", "bad priority"])


class Queues(RuleBasedStateMachine):
    """The model is `self.jobs` (rows by id, in the order of seq) and `self.generations`; time only moves forward."""

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
        self.aside: set[str] = set()
        self.generations: dict[tuple[str, str | None], int] = {}
        self.seq = 0
        self.gone: set[str] = set()
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
        if any(job.subject_key is not None for job in self.over()):
            self.expire(0, 1000)  # whoever is behind one that is over waits for this
        claimed = self.do(self.opened.claim(slots, limit=limit, now=self.now))
        expected: list[str] = []
        for job in self.ready(SUBPROCESS):
            if len(expected) < limit and slots.get(job.queue, 0) > 0 and not self.sibling_runs(job):
                slots[job.queue] -= 1
                expected.append(job.job_id)
                self.begin(job)
        assert [job.job_id for job in claimed] == expected

    @rule(takers=st.lists(TAKERS, min_size=1, max_size=4), slots=SLOTS, offered=OFFERED, rooms=SLOTS_OF_TASKS)
    def claim_tasks(
        self, takers: list[Taker], slots: dict[str, int], offered: frozenset[str], rooms: dict[str, int]
    ) -> None:
        request = TaskClaim(queues=slots, takers=takers, offered=offered, rooms=rooms, now=self.now, node_id="node")
        claimed = self.do(self.opened.store.claim_tasks(request))
        told = [[job.job_id for job in jobs] for jobs in claimed.jobs], claimed.set_aside, claimed.unserved
        assert told == self.choose(request, dict(slots), dict(rooms))

    def choose(self, request: TaskClaim, slots: dict[str, int], rooms: dict[str, int]) -> tuple[Any, ...]:
        """What a claim for these takers answers."""
        taken: list[list[str]] = [[] for _ in request.takers]
        got: dict[str | None, set[str]] = {}  # of which queues each worker got jobs
        set_aside, unserved, passed = set(), set(), 0
        for job in self.ready(IN_PROCESS):
            queue, kind = job.queue, job.job_type
            with_room = [n for n, taker in enumerate(request.takers) if len(taken[n]) < taker.limit]
            if passed >= (PASSED_OVER if with_room else PASSED_OVER_WHEN_FULL):
                break
            able = []
            for n in with_room:
                taker = request.takers[n]
                holds = got.get(taker.facts.worker, set()) if taker.queues is None else taker.queues
                if queue in holds if taker.ahead else slots.get(queue, 0) > 0:
                    able.append(n)
            if queue not in slots or (slots[queue] == 0 and not able):
                continue
            if kind not in request.offered or rooms.get(kind, 1) == 0:
                self.aside.add(job.job_id)
                set_aside.add(kind)
                continue
            once = job.on_interrupt is OnInterrupt.FAIL
            able = [n for n in able if kind in request.takers[n].tasks and not (once and request.takers[n].ahead)]
            if not able:
                passed += 1
                unserved |= {kind} if slots[queue] else set()
                continue
            taker = request.takers[able[0]]
            taken[able[0]].append(job.job_id)
            if not taker.ahead:
                slots[queue] -= 1
                if taker.queues is None:
                    got.setdefault(taker.facts.worker, set()).add(queue)
            if kind in rooms:
                rooms[kind] -= 1
            self.begin(job)
        return taken, set_aside, unserved

    def begin(self, job: Job) -> None:
        self.jobs[job.job_id] = msgspec.structs.replace(job, state=State.RUNNING, claim_no=job.claim_no + 1)

    @rule(kind=TASKS, limit=st.integers(0, 3))
    def bring_back(self, kind: str, limit: int) -> None:
        self.aside &= {job.job_id for job in self.jobs.values() if job.state is State.QUEUED}
        assert self.do(self.opened.store.aside()) == {self.jobs[job_id].job_type for job_id in self.aside}
        found = [job for job in self.in_order() if job.job_id in self.aside and job.job_type == kind][:limit]
        assert self.do(self.opened.store.bring_back(kind, limit)) == len(found)
        self.aside -= {job.job_id for job in found}

    @rule(picks=st.lists(st.integers(0), min_size=1, max_size=4), outcome=OUTCOMES, jitter=st.floats(0.9, 1.1))
    def finish(self, picks: list[int], outcome: Outcome, jitter: float) -> None:
        """One by itself, or many; of one that is named twice the second report is late."""
        named = [job for pick in picks if (job := self.pick(pick, State.RUNNING))]
        before = {job.job_id: self.do(self.opened.job(job.job_id)) for job in named}
        if len(named) == 1:
            told = [self.do(self.opened.finish(named[0], outcome, now=self.now, jitter=jitter))]
        else:
            reports = [
                Finish(job_id=job.job_id, claim_no=job.claim_no, outcome=outcome, now=self.now, jitter=jitter)
                for job in named
            ]
            told = self.do(self.opened.store.finish_many(reports))
        for job, finished in zip(named, told, strict=True):
            row = before.pop(job.job_id, None)
            if row is None:
                assert finished.decision is None
                continue
            assert (row.state, row.claim_no, row.stop_reason) == (job.state, job.claim_no, job.stop_reason)
            assert finished.decision == decide(row, outcome, jitter=jitter)
            self.end(job, outcome, finished.decision)

    def end(self, job: Job, outcome: Outcome, decision: Decision) -> None:
        final = decision.state in FINAL
        self.jobs[job.job_id] = msgspec.structs.replace(
            job,
            state=decision.state,
            stop_reason=job.stop_reason if final else None,
            run_at=self.now + decision.delay_ms if decision.state is State.SCHEDULED else job.run_at,
            finished_at=self.now if final else None,
        )
        snoozes = outcome.failure is FailureClass.SNOOZE and decision.event is Event.RETRY
        quiet = job.execution_mode is IN_PROCESS and (snoozes or decision.state is State.DONE)
        self.attempts[job.job_id] += 0 if quiet else decision.attempts

    @rule(pick=st.integers(0), older=st.integers(0, 2))
    def late_report(self, pick: int, older: int) -> None:
        """Of an older claim, or of a job that does not run."""
        job = self.pick(pick, *State)
        if job is None or (job.state is State.RUNNING and older == 0):
            return
        report = Finish(
            job_id=job.job_id,
            claim_no=job.claim_no - older or 99,
            outcome=outcomes.success(result="1"),
            now=self.now,
            jitter=1.0,
        )
        assert self.do(self.opened.store.finish(report)).decision is None
        assert [told.decision for told in self.do(self.opened.store.finish_many([report]))] == [None]

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
                self.jobs[job.job_id] = msgspec.structs.replace(job, state=State.CANCELLED, finished_at=self.now)
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

    @rule(wait=st.integers(0, 3), limit=st.integers(0, 3))
    def expire(self, wait: int, limit: int) -> None:
        self.now += wait
        times = {job.job_id: expires_at(job, job.state, job.claim_no) for job in self.jobs.values()}
        order = sorted((at, self.jobs[job_id].seq, job_id) for job_id, at in times.items() if at is not None)
        over = [job_id for at, _, job_id in order if at <= self.now][:limit]
        for job_id in over:
            state = State.SKIPPED_DEADLINE if self.jobs[job_id].deadline == times[job_id] else State.SKIPPED_TTL
            self.jobs[job_id] = msgspec.structs.replace(self.jobs[job_id], state=state, finished_at=self.now)
        expired = self.do(self.opened.store.expire(self.now, limit))
        assert expired.count == len(over)
        assert expired.next_at == min((at for at, _, job_id in order if job_id not in over), default=None)

    @rule(keep=st.none() | st.integers(0, 9), older=st.none() | st.integers(0, 9))
    def purge(self, keep: int | None, older: int | None) -> None:
        finished = sorted(
            (job for job in self.jobs.values() if job.finished_at is not None),
            key=lambda job: (job.finished_at, job.seq),
        )
        named = {job.parent_job_id for job in self.jobs.values() if job.state not in FINAL}
        before = None if older is None else self.now - older
        expected = []
        for rank, job in enumerate(finished):
            old = before is not None and job.finished_at is not None and job.finished_at < before
            if (old or (keep is not None and rank < len(finished) - keep)) and job.job_id not in named:
                expected.append((job.job_id, job.claim_no))
        purged = self.do(self.opened.store.purge(Purge(finished_before=before, keep=keep)))
        assert (list(purged.jobs), purged.more) == (expected, False)
        for job_id, _ in expected:
            del self.jobs[job_id]
            self.gone.add(job_id)
        used = {self.subject(job) for job in self.jobs.values()}
        unused = [subject for subject in self.generations if subject not in used]
        assert self.do(self.opened.store.purge_subjects(100)) == len(unused)
        for subject in unused:
            del self.generations[subject]

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
            for name in ("state", "claim_no", "stop_reason", "run_at", "generation", "queue", "superseded_by"):
                assert getattr(stored[job_id], name) == getattr(job, name), name
            assert stored[job_id].finished_at == job.finished_at
        assert [j.job_id for j in self.do(self.opened.store.running())] == [
            j.job_id for j in self.jobs.values() if j.state is State.RUNNING
        ]

    @invariant()
    def attempts_agree(self) -> None:
        for job_id, count in self.attempts.items():
            expected = 0 if job_id in self.gone else count
            assert len(self.do(self.opened.store.attempts(job_id))) == expected

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
        for job_id in self.gone:
            assert states.pop(job_id) in FINAL
        assert states == {job_id: job.state for job_id, job in self.jobs.items()}

    @invariant()
    def times_agree(self) -> None:
        times = [expires_at(job, job.state, job.claim_no) for job in self.jobs.values()]
        expected = min((at for at in times if at is not None), default=None)
        assert self.do(self.opened.store.next_expiry()) == expected

    # --- the model ---

    def make(self, drawn: dict[str, Any]) -> NewJob:
        fields = {**drawn, "created_at": self.now}
        parent = fields.pop("parent")
        if parent is not None and self.jobs:
            fields["parent_job_id"] = list(self.jobs)[parent % len(self.jobs)]
        for name in ("run_at", "deadline"):
            if fields[name] is not None:
                fields[name] += self.now
        if fields["execution_mode"] is IN_PROCESS:
            fields["subject_key"] = None  # whether it is behind another one of its lane is no matter of this model
        if fields["subject_key"] is None:
            fields["on_duplicate"] = None
        return new_job(**fields)

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
        before = self.jobs, self.generations, self.seq
        self.jobs, self.generations = dict(self.jobs), dict(self.generations)
        expected = []
        ids = [job.job_id for job in jobs]
        for index, job in enumerate(jobs):
            one = self.enter(job)
            if isinstance(one, str):
                self.jobs, self.generations, self.seq = before
                assert isinstance(answer, Conflict | DatabaseError)
                if one in ids[:index]:  # neither of the two is stored, so no id is named
                    assert answer.details == {"index": index, "first_index": ids.index(one)}
                elif one:
                    assert isinstance(answer, Conflict)
                    assert answer.details["job_id"] == one
                return
            expected.append(one)
        assert not isinstance(answer, BaseException), answer
        told = [
            (a.job_id, a.deduplicated, a.generation, a.superseded, [running.job_id for running in a.stopping])
            for a in answer
        ]
        assert told == expected

    def enter(self, job: NewJob) -> tuple[str, bool, int | None, int, list[str]] | str:
        """What is answered; or the job that is in its way, or "" if the row is refused."""
        for other in self.jobs.values():
            if job.idempotency_key is not None and other.idempotency_key == job.idempotency_key:
                same = other.content_hash == job.content_hash
                return (other.job_id, True, other.generation, 0, []) if same else other.job_id
        live = [o for o in self.jobs.values() if o.state not in FINAL and self.subject(o) == self.subject(job)]
        live = live if job.subject_key is not None else []
        if live and job.on_duplicate is OnDuplicate.REJECT:
            return live[-1].job_id
        will_do = [o for o in live if o.superseded_by is None and o.stop_reason is None]
        if will_do and job.on_duplicate is OnDuplicate.JOIN:
            return will_do[-1].job_id, True, will_do[-1].generation, 0, []
        if job.job_id in self.jobs or job.priority > 100:
            return ""
        superseding = job.on_duplicate in {OnDuplicate.SUPERSEDE, OnDuplicate.SUPERSEDE_RUNNING}
        stopping = []
        for other in live if superseding else []:
            changed = msgspec.structs.replace(other, superseded_by=job.job_id)
            if other.state in WAITING:
                changed = msgspec.structs.replace(changed, state=State.SUPERSEDED, finished_at=job.created_at)
            elif job.on_duplicate is OnDuplicate.SUPERSEDE_RUNNING:
                stopping.append(other.job_id)
                if may_raise(other.stop_reason, StopReason.SUPERSEDED):
                    changed = msgspec.structs.replace(changed, stop_reason=StopReason.SUPERSEDED)
            self.jobs[other.job_id] = changed
        generation = None
        if job.subject_key is not None:
            generation = self.generations[self.subject(job)] = self.generations.get(self.subject(job), 0) + 1
        self.jobs[job.job_id] = self.row(job, generation)
        return job.job_id, False, generation, len(live) if superseding else 0, stopping

    def row(self, job: NewJob, generation: int | None) -> Job:
        self.seq += 1
        waits = job.run_at is not None and job.run_at > job.created_at
        shared = {name: getattr(job, name) for name in NewJob.__struct_fields__ if name in Job.__struct_fields__}
        return Job(
            **shared,
            seq=self.seq,
            state=State.SCHEDULED if waits else State.QUEUED,
            generation=generation,
        )

    def over(self) -> list[Job]:
        times = [(expires_at(job, job.state, job.claim_no), job) for job in self.jobs.values()]
        return [job for at, job in times if at is not None and at <= self.now]

    def in_order(self) -> list[Job]:
        order = {job_id: n for n, job_id in enumerate(self.jobs)}
        return sorted(self.jobs.values(), key=lambda job: (-job.priority, order[job.job_id]))

    def ready(self, mode: ExecutionMode) -> list[Job]:
        over = {job.job_id for job in self.over()} | self.aside
        return [
            job
            for job in self.in_order()
            if job.state is State.QUEUED
            and job.execution_mode is mode
            and job.queue not in self.paused
            and job.job_id not in over
        ]

    @staticmethod
    def subject(job: Job | NewJob) -> tuple[str, str | None]:
        return job.job_type, job.subject_key

    def sibling_runs(self, job: Job) -> bool:
        return job.subject_key is not None and any(
            other.state is State.RUNNING and self.subject(other) == self.subject(job) for other in self.jobs.values()
        )

    def pick(self, number: int, *states: State) -> Job | None:
        found = [job for job in self.jobs.values() if job.state in states]
        return found[number % len(found)] if found else None

    @staticmethod
    def due(job: Job) -> int:
        assert job.run_at is not None
        return job.run_at


PLAIN = st.builds(
    lambda queue, name, priority, on_interrupt: new_job(
        queue=queue, job_type=name, priority=priority, on_interrupt=on_interrupt, execution_mode=IN_PROCESS
    ),
    QUEUES,
    TASKS,
    st.integers(-1, 1),
    st.sampled_from([OnInterrupt.REQUEUE, OnInterrupt.REQUEUE, OnInterrupt.FAIL]),
)
CLAIMS = st.tuples(st.lists(TAKERS, min_size=1, max_size=4), SLOTS, OFFERED, SLOTS_OF_TASKS)


@pytest.mark.parametrize("kind", STORES)
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(jobs=st.lists(PLAIN, min_size=4, max_size=12), claims=st.lists(CLAIMS, min_size=1, max_size=4), outcome=OUTCOMES)
def test_claims_of_tasks_follow_the_model(kind: str, jobs: list[NewJob], claims: list[Any], outcome: Outcome) -> None:
    """The same model with jobs that are ready, which are few in the test below: here claims have a choice."""
    machine = type("Machine", (Queues,), {"kind": kind})()
    machine.open()
    try:
        machine.expect_inserted(jobs, machine.do(machine.opened.store.insert(jobs, durable=False)))
        for takers, slots, offered, rooms in claims:
            machine.claim_tasks(takers, slots, offered, rooms)
            machine.finish([0, 1, 1], outcome, 1.0)
            machine.bring_back("t", 2)
        machine.rows_agree()
        machine.counters_agree()
        machine.changes_agree()
    finally:
        machine.teardown()


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
