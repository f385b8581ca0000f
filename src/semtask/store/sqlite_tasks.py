"""Giving tasks to workers: who takes which of the jobs that are ready, and what is set aside."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import apsw

from semtask.model.job import ExecutionMode, OnInterrupt, ProgressNote, Taker
from semtask.model.state import State
from semtask.store.codes import INTERRUPTS, MODES
from semtask.store.requests import PASSED_OVER, PASSED_OVER_WHEN_FULL, TaskClaim, TaskClaimed
from semtask.store.sql import query
from semtask.store.sqlite_claim import claim_rows, free_lanes_behind
from semtask.store.sqlite_rows import Row, fetch, id_bytes, row_change
from semtask.store.writer import Tick

# Jobs set aside, or brought back, in one tick: a few milliseconds.
MOVED = 1_000

_REQUEUE, _FAIL = INTERRUPTS.code(OnInterrupt.REQUEUE), INTERRUPTS.code(OnInterrupt.FAIL)


class Step(NamedTuple):
    """What a claim did in one tick. `more`: it set so much aside that it did not see all that it may."""

    claimed: TaskClaimed
    more: bool


def claim_tasks(tick: Tick, request: TaskClaim) -> Step:
    choice = _Choice(request)
    with _ready(tick.db, request, choice) as candidates:
        for candidate in candidates:
            choice.offer(candidate)
            if choice.complete:
                break
    aside = [{"seq": seq, "claim_no": claim_no} for _, seq, _, _, claim_no, *_ in choice.aside]
    tick.db.executemany(query("set_aside"), aside)
    if choice.needs_sync:
        tick.require_sync()  # a claim that a power cut forgets would run twice
    jobs = [
        claim_rows(tick, place.rows, now=request.now, node_id=request.node_id, facts=place.taker.facts)
        for place in choice.places
    ]
    for taker in request.takers[:1]:  # whoever: damaged rows go into quarantine
        claim_rows(tick, choice.damaged, now=request.now, node_id=request.node_id, facts=taker.facts)
    free_lanes_behind(tick, [job for taken in jobs for job in taken])
    claimed = TaskClaimed(
        jobs=jobs,
        set_aside=frozenset(choice.set_aside),
        unserved=frozenset(choice.unserved),
    )
    return Step(claimed, more=len(choice.aside) + len(choice.damaged) >= MOVED)


def bring_back(tick: Tick, job_type: str, limit: int) -> int:
    rows = fetch(tick.db, query("bring_back"), {"job_type": job_type, "limit": limit})
    # Claims have passed these queues: nothing else would tell that there is work again.
    for expires_at, *job in rows:
        tick.changes.append(row_change(job, State.QUEUED, State.QUEUED, expires_at=expires_at))
    return len(rows)


def record_progress(tick: Tick, notes: Sequence[ProgressNote]) -> None:
    rows = ({"job_id": id_bytes(n.job_id), "claim_no": n.claim_no, "progress": n.progress} for n in notes)
    tick.db.executemany(query("record_progress"), rows)


# --- who takes what ---


class _Place:
    """A taker and what it takes. `queues` are those of which its worker has jobs."""

    __slots__ = ("left", "queues", "rows", "taker")

    def __init__(self, taker: Taker, queues: set[str]) -> None:
        self.taker = taker
        self.left = taker.limit
        self.queues = queues
        self.rows: list[Row] = []

    def may_take(self, row: Row, *, slot: bool) -> bool:
        if not self.taker.ahead:
            return slot
        _, _, queue, _, _, _, subject_key, on_interrupt = row
        return queue in self.queues and subject_key is None and on_interrupt == _REQUEUE


class _Choice:
    """Goes through the candidates, rows of ready_jobs.sql, best first. Nothing is written meanwhile."""

    def __init__(self, request: TaskClaim) -> None:
        self.aside: list[Row] = []
        self.set_aside: set[str] = set()
        self.damaged: list[Row] = []
        self.unserved: set[str] = set()
        self.needs_sync = False
        self._offered = request.offered
        self._slots = dict(request.queues)
        self._rooms = dict(request.rooms)
        self._subjects: set[tuple[str, bytes]] = set()
        self._passed = 0
        held: dict[str | None, set[str]] = defaultdict(set)
        self.places = [_Place(taker, _queues_of(taker, held)) for taker in request.takers]
        self._open = [place for place in self.places if place.left > 0]
        self._open_to: dict[str, list[_Place]] = {}
        self.wanted: set[str] = set()
        self._look_around()

    def _look_around(self) -> None:
        """`wanted` are the queues of which something can be taken."""
        ahead = (place.queues for place in self._open if place.taker.ahead)
        self.wanted = {queue for queue, slots in self._slots.items() if slots > 0}.union(*ahead)
        self._open_to.clear()

    @property
    def complete(self) -> bool:
        return len(self.aside) + len(self.damaged) >= MOVED or self._passed >= (
            PASSED_OVER if self._open else PASSED_OVER_WHEN_FULL
        )

    def offer(self, row: Row) -> None:
        _, _, queue, _, _, raw, subject_key, _ = row
        if queue not in self.wanted:
            return  # read ahead by the merge, before the queue was full
        try:
            task = str(raw, "utf-8")
        except UnicodeDecodeError:
            self.damaged.append(row)
            return
        if task not in self._offered or self._rooms.get(task) == 0:
            self.aside.append(row)
            self.set_aside.add(task)
            return
        slot = self._slots[queue] > 0
        # Otherwise one of its lane begins in this very claim.
        if subject_key is None or (task, subject_key) not in self._subjects:
            for place in self._takers_of(task):
                if place.may_take(row, slot=slot):
                    self._give(row, task, place)
                    return
            if slot:
                self.unserved.add(task)
        self._passed += 1

    def _give(self, row: Row, task: str, place: _Place) -> None:
        _, _, queue, _, _, _, subject_key, on_interrupt = row
        place.rows.append(row)
        place.left -= 1
        if not place.left:
            self._open.remove(place)
        if not place.taker.ahead:
            self._slots[queue] -= 1
            place.queues.add(queue)
        if not place.left or not (place.taker.ahead or self._slots[queue]):
            self._look_around()
        if task in self._rooms:
            self._rooms[task] -= 1
        if subject_key is not None:
            self._subjects.add((task, subject_key))
        if on_interrupt == _FAIL:
            self.needs_sync = True

    def _takers_of(self, task: str) -> Sequence[_Place]:
        """The takers of a task that have room, in their order."""
        found = self._open_to.get(task)
        if found is None:
            found = self._open_to[task] = [place for place in self._open if task in place.taker.tasks]
        return found


def _queues_of(taker: Taker, held: Mapping[str | None, set[str]]) -> set[str]:
    """What a worker has jobs of: told by the taker, or of what it gets in this claim."""
    return set(taker.queues) if taker.queues is not None else held[taker.facts.worker]


@contextmanager
def _ready(db: apsw.Connection, request: TaskClaim, choice: _Choice) -> Iterator[Iterator[Row]]:
    """The candidates of all queues, best first, read only as far as they are wanted."""
    cursors: list[apsw.Cursor] = []

    def listing(queue: str) -> Iterator[Row]:
        where = {
            "mode": MODES.code(ExecutionMode.IN_PROCESS),
            "queue": queue,
            "min_priority": request.min_priority,
            "now": request.now,
            "limit": -1,
        }
        rows = db.execute(query("ready_jobs"), where)
        cursors.append(rows)
        for row in rows:
            if queue not in choice.wanted:
                return
            yield row

    try:
        yield heapq.merge(*(listing(queue) for queue in request.queues if queue in choice.wanted))
    finally:
        for cursor in cursors:
            cursor.close()  # nothing may be open when the rows change
