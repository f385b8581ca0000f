"""New jobs: idempotency keys first, then what becomes of the live jobs of their subjects, then the rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import apsw
from msgspec.structs import astuple

from semtask.errors import Conflict
from semtask.model.job import NewJob, OnDuplicate
from semtask.model.state import EndCause, State
from semtask.store.codes import END_CAUSES, INTERRUPTS, MODES, STATES
from semtask.store.requests import Inserted, Running
from semtask.store.sql import query
from semtask.store.sqlite_rows import Row, fetch, fetch_value, id_bytes, id_text, job_change, to_json
from semtask.store.sqlite_stop import Superseded, live_of, subject_of
from semtask.store.writer import Tick

Subject: TypeAlias = tuple[str, str]  # job_type and subject_key


@dataclass(slots=True, eq=False)
class NewRow:
    """A new job with what the store adds; a subject needs a generation."""

    job: NewJob
    seq: int
    state: State
    generation: int | None = None
    finished_at: int | None = None
    end_cause: EndCause | None = None
    superseded_by: bytes | None = None


@dataclass(slots=True, eq=False)
class _New:
    """A job of this request that goes in."""

    job: NewJob
    row: NewRow
    index: int
    superseded: int = 0
    stopping: Sequence[Running] = ()

    def answer(self) -> Inserted:
        return self._answer(superseded=self.superseded, stopping=self.stopping)

    def answer_again(self) -> Inserted:
        return self._answer(deduplicated=True)

    def _answer(self, **details: Any) -> Inserted:
        row = self.row
        return Inserted(
            job_id=self.job.job_id,
            queue=self.job.queue,
            state=row.state,
            generation=row.generation,
            **details,
        )


@dataclass(slots=True)
class _Lane:
    """A subject while a request goes in.

    `live`: there are live jobs of it in the store. Those that wait and the one that runs are read only if a job of the
    request supersedes. `new` and `waiting` are of the request.
    """

    live: bool = False
    stored_waiting: list[Row] = field(default_factory=list)
    stored_running: Row | None = None
    new: list[_New] = field(default_factory=list)
    waiting: list[_New] = field(default_factory=list)


def insert(tick: Tick, jobs: Sequence[NewJob]) -> list[Inserted]:
    keys = _Keys(tick, jobs)
    lanes = _lanes(tick, jobs)
    superseded = Superseded(tick)
    seq = _allocate(tick, len(jobs))
    rows: list[NewRow] = []
    answers: list[Callable[[], Inserted]] = []
    for index, job in enumerate(jobs):
        lane = lanes[job.job_type, job.subject_key] if job.subject_key is not None else None
        answer = keys.find(job, index) or (_joined(tick, job, lane, index) if lane else None)
        if answer is None:
            state = State.SCHEDULED if job.run_at is not None and job.run_at > job.created_at else State.QUEUED
            new = _New(job, NewRow(job, seq + index, state), index)
            rows.append(new.row)
            keys.keep(new)
            tick.changes.append(job_change(job, None, state, claim_no=0, run_at=job.run_at))
            if lane:
                _enter(tick, lane, new, superseded)
            answer = new.answer
        answers.append(answer)
    superseded.write()
    _number(tick, lanes)
    before = tick.db.total_changes()
    insert_rows(tick.db, rows)
    if tick.db.total_changes() - before != len(rows):
        raise Conflict("a job_id of this request belongs to a stored job already; nothing was stored")
    return [answer() for answer in answers]


def insert_rows(db: apsw.Connection, rows: Sequence[NewRow]) -> None:
    """In their order. Most columns of most jobs are empty: only those that are not take part."""
    if not rows:
        return
    columns = _columns(rows)
    filled = {name: values for name, values in columns.items() if values.count(None) < len(rows)}
    db.executemany(_insert_statement(tuple(filled)), zip(*filled.values(), strict=True))


def _columns(rows: Sequence[NewRow]) -> dict[str, Sequence[Any]]:
    columns: dict[str, Sequence[Any]] = dict(
        zip(NewJob.__struct_fields__, zip(*(astuple(row.job) for row in rows), strict=True), strict=True)
    )
    del columns["on_duplicate"], columns["durability"]
    for name in ("job_id", "parent_job_id", "retry_of"):
        columns[name] = [job_id and id_bytes(job_id) for job_id in columns[name]]
    columns["execution_mode"] = [MODES.code(mode) for mode in columns["execution_mode"]]
    columns["on_interrupt"] = [INTERRUPTS.code(choice) for choice in columns["on_interrupt"]]
    columns["seq"] = [row.seq for row in rows]
    columns["state"] = [STATES.code(row.state) for row in rows]
    columns["generation"] = [row.generation for row in rows]
    columns["finished_at"] = [row.finished_at for row in rows]
    columns["end_cause"] = [END_CAUSES.code_or_none(row.end_cause) for row in rows]
    columns["superseded_by"] = [row.superseded_by for row in rows]
    return columns


@lru_cache(maxsize=256)
def _insert_statement(columns: Sequence[str]) -> str:
    """With numbers as parameters: to look names up takes as long as to insert."""
    numbers = {name: f"?{number}" for number, name in enumerate(columns, 1)}
    template = query("insert_into_lane" if "subject_key" in numbers else "insert_job")
    statement = re.sub(r":(\w+)", lambda name: numbers[name[1]], template)
    return statement.format(columns=", ".join(columns), values=", ".join(numbers.values()))


def _allocate(tick: Tick, count: int) -> int:
    """The first of `count` numbers that were never given out before."""
    return int(fetch_value(tick.db, query("allocate_seq"), {"count": count}))


class _Keys:
    """The idempotency keys of a request, stored ones and new ones."""

    def __init__(self, tick: Tick, jobs: Sequence[NewJob]) -> None:
        self._known: dict[str, tuple[bytes | None, str, Callable[[], Inserted]]] = {}
        self._new: dict[str, _New] = {}
        keys = [job.idempotency_key for job in jobs if job.idempotency_key is not None]
        if keys:
            for key, content_hash, *job in fetch(tick.db, query("find_by_keys"), {"keys": to_json(keys)}):
                stored = _stored(job)
                self._known[key] = content_hash, stored.job_id, _always(stored)

    def find(self, job: NewJob, index: int) -> Callable[[], Inserted] | None:
        """The answer for a key that is known. Raises Conflict if it belongs to other content."""
        if job.idempotency_key is None or job.idempotency_key not in self._known:
            return None
        content_hash, job_id, answer = self._known[job.idempotency_key]
        if content_hash != job.content_hash:
            if (first := self._new.get(job.idempotency_key)) is not None:
                raise _contradicts(first, index, f"the idempotency key {job.idempotency_key!r}", "other content")
            raise Conflict(
                f"the idempotency key {job.idempotency_key!r} belongs to job {job_id}, which has other content; "
                "use a new key for a new job",
                details={"job_id": job_id, "index": index, "idempotency_key": job.idempotency_key},
            )
        return answer

    def keep(self, new: _New) -> None:
        if new.job.idempotency_key is not None:
            self._new[new.job.idempotency_key] = new
            self._known[new.job.idempotency_key] = new.job.content_hash, new.job.job_id, new.answer_again


def _contradicts(first: _New, index: int, shared: str, why: str) -> Conflict:
    """Of two jobs of one request, neither of which is stored then: so no id is named."""
    return Conflict(
        f"jobs[{first.index}] and jobs[{index}] of this request have {shared}, but {why}; nothing was stored",
        details={"index": index, "first_index": first.index},
    )


def _stored(row: Sequence[Any]) -> Inserted:
    """From the columns job_id, queue, state, generation."""
    job_id, queue, state, generation = row
    return Inserted(
        job_id=id_text(job_id), queue=queue, state=STATES.word(state), generation=generation, deduplicated=True
    )


def _always(answer: Inserted) -> Callable[[], Inserted]:
    return lambda: answer


# --- subjects ---


_SUPERSEDING = {OnDuplicate.SUPERSEDE, OnDuplicate.SUPERSEDE_RUNNING}
_LOOKING = {OnDuplicate.JOIN, OnDuplicate.REJECT}


def _lanes(tick: Tick, jobs: Sequence[NewJob]) -> dict[Subject, _Lane]:
    lanes: dict[Subject, _Lane] = {}
    superseding: set[Subject] = set()
    looking: set[Subject] = set()
    for job in jobs:
        if job.subject_key is not None:
            subject = job.job_type, job.subject_key
            lanes[subject] = _Lane()
            if job.on_duplicate in _SUPERSEDING:
                superseding.add(subject)
            elif job.on_duplicate in _LOOKING:
                looking.add(subject)
    if looking:
        for subject in fetch(tick.db, query("live_subjects"), {"subjects": to_json(list(looking))}):
            lanes[subject].live = True
    if superseding:
        for state, row in live_of(tick, superseding):
            lane = lanes[subject_of(row)]
            if state is State.RUNNING:
                lane.stored_running = row
            else:
                lane.stored_waiting.append(row)
    return lanes


def _joined(tick: Tick, job: NewJob, lane: _Lane, index: int) -> Callable[[], Inserted] | None:
    """The answer of a job that does not go in, because its subject has one that will do."""
    match job.on_duplicate:
        case OnDuplicate.JOIN:
            if lane.waiting:
                return lane.waiting[-1].answer_again
            stored = _newest(tick, job, any_live=False) if lane.live else None
            return _always(stored) if stored else None
        case OnDuplicate.REJECT:
            if lane.waiting:
                shared = f"the subject {job.subject_key!r}"
                raise _contradicts(lane.waiting[-1], index, shared, "on_duplicate=reject takes no second one")
            if lane.live and (live := _newest(tick, job, any_live=True)):
                raise _rejected(job, live.job_id, index)
    return None


def _newest(tick: Tick, job: NewJob, *, any_live: bool) -> Inserted | None:
    where = {"job_type": job.job_type, "subject_key": job.subject_key, "any_live": any_live}
    rows = fetch(tick.db, query("newest_of_subject"), where)
    return _stored(rows[0]) if rows else None


def _rejected(job: NewJob, job_id: str, index: int) -> Conflict:
    return Conflict(
        f"job {job_id} of the subject {job.subject_key!r} has not ended, and on_duplicate=reject takes no second one",
        details={"job_id": job_id, "index": index, "subject_key": job.subject_key},
    )


def _enter(tick: Tick, lane: _Lane, new: _New, superseded: Superseded) -> None:
    """A new job of a subject: supersede the older ones if it says so, and take the last place."""
    if new.job.on_duplicate in _SUPERSEDING:
        for older in lane.waiting:
            _end_at_once(tick, older, new)
        superseded.waiting(lane.stored_waiting, new.job)
        new.superseded = len(lane.waiting) + len(lane.stored_waiting)
        if lane.stored_running:
            stop = new.job.on_duplicate is OnDuplicate.SUPERSEDE_RUNNING
            new.stopping = superseded.running(lane.stored_running, new.job, stop=stop)
            new.superseded += 1
        lane.stored_waiting = []
        lane.waiting = []
    lane.new.append(new)
    lane.waiting.append(new)


def _end_at_once(tick: Tick, older: _New, by: _New) -> None:
    row = older.row
    before = row.state
    row.state = State.SUPERSEDED
    row.finished_at = by.job.created_at
    row.end_cause = EndCause.SUPERSEDED
    row.superseded_by = id_bytes(by.job.job_id)
    tick.changes.append(job_change(older.job, before, State.SUPERSEDED, claim_no=0, end_cause=EndCause.SUPERSEDED))


def _number(tick: Tick, lanes: dict[Subject, _Lane]) -> None:
    """Give the new jobs of each subject the next generations."""
    counts = [(*subject, len(lane.new)) for subject, lane in lanes.items() if lane.new]
    if not counts:
        return
    for job_type, subject_key, last in fetch(tick.db, query("next_generations"), {"subjects": to_json(counts)}):
        new = lanes[job_type, subject_key].new
        for generation, one in enumerate(new, last - len(new) + 1):
            one.row.generation = generation
