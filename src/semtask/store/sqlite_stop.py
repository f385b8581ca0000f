"""Ending what waits and asking what runs to stop: cancelled by its user, superseded, over its time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from semtask.model.job import NewJob
from semtask.model.state import FINAL, TRANSITIONS, EndCause, Event, State, StopReason, may_raise
from semtask.store.codes import END_CAUSES, STATES, STOP_REASONS
from semtask.store.requests import Expired, Running, Stopped, StopRequest, StopSelector
from semtask.store.sql import query
from semtask.store.sqlite_rows import Row, fetch, fetch_value, id_bytes, id_text, row_change, to_json
from semtask.store.writer import Tick

Lane: TypeAlias = tuple[str, str, int, str]  # job_type, subject_key, code of the execution mode, and queue

_QUEUED, _RUNNING = STATES.code(State.QUEUED), STATES.code(State.RUNNING)


def stop(tick: Tick, request: StopRequest) -> Stopped:
    selector, value = _selector(request.selector)
    where = {"value": value}
    found, state = fetch(tick.db, query("count_of").format(selector=selector), where)[0]
    ended = 0
    if request.reason is StopReason.CANCEL:
        waiting = fetch(tick.db, query("waiting_of").format(selector=selector), where)
        _end_waiting(tick, waiting, Event.CANCEL, EndCause.CANCELLED, now=request.now)
        _free_lanes_of(tick, waiting)
        ended = len(waiting)
    running = fetch(tick.db, query("running_of").format(selector=selector), where)
    stopping = [_stop_running(tick, row, request.reason, request.grace_ms) for row in running]
    named = request.selector.job_id is not None and found and STATES.word(state) in FINAL
    return Stopped(found=found, ended=ended, stopping=stopping, final_state=STATES.word(state) if named else None)


def live_of(tick: Tick, subjects: Iterable[tuple[str, str]]) -> Iterator[tuple[State, Row]]:
    """The live jobs of subjects: rows as of waiting_of.sql, and of running_of.sql for those that run."""
    rows = fetch(tick.db, query("live_of_subjects"), {"subjects": to_json(list(subjects))})
    for seq, state, behind, grace_ms, stop_reason, stop_grace_ms, *job in rows:
        if state == _RUNNING:
            yield State.RUNNING, (seq, grace_ms, stop_reason, stop_grace_ms, *job)
        else:
            yield STATES.word(state), (seq, state, behind, *job)


def subject_of(row: Row) -> tuple[str, str]:
    """Of a row of either kind."""
    return row[-4], row[-1]


class Superseded:
    """Gathers what the jobs of one request supersede in the store, to be written together."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self._ends: list[dict[str, Any]] = []
        self._marks: list[dict[str, Any]] = []
        self._stopping: dict[int, Running] = {}

    def waiting(self, rows: Iterable[Row], by: NewJob) -> None:
        cause, superseded_by = EndCause.SUPERSEDED, id_bytes(by.job_id)
        self._ends += _ends(self._tick, rows, Event.SUPERSEDE, cause, now=by.created_at, superseded_by=superseded_by)

    def running(self, row: Row, by: NewJob, *, stop: bool) -> Sequence[Running]:
        """A running job goes on, unless it is to be stopped."""
        seq = row[0]
        self._marks.append({"seq": seq, "claim_no": _claim_no(row), "superseded_by": id_bytes(by.job_id)})
        if not stop:
            return ()
        if seq not in self._stopping:
            self._stopping[seq] = _stop_running(self._tick, row, StopReason.SUPERSEDED, None)
        return [self._stopping[seq]]

    def write(self) -> None:
        self._tick.db.executemany(query("end_waiting"), self._ends)
        self._tick.db.executemany(query("mark_superseded"), self._marks)


def expire(tick: Tick, now: int, limit: int) -> Expired:
    over = fetch(tick.db, query("overdue_jobs"), {"now": now, "limit": limit})
    missed = [row for deadline, *row in over if deadline]
    late = [row for deadline, *row in over if not deadline]
    _end_waiting(tick, missed, Event.MISS_DEADLINE, EndCause.DEADLINE, now=now)
    _end_waiting(tick, late, Event.EXPIRE, EndCause.TTL, now=now)
    # Claims have passed these queues: nothing else would tell that there is work again.
    for _, expires_at, *job in _free_lanes_of(tick, [*missed, *late]):
        tick.changes.append(row_change(job, State.QUEUED, State.QUEUED, expires_at=expires_at))
    return Expired(count=len(over), next_at=fetch_value(tick.db, query("next_expiry")))


def free_lanes(tick: Tick, lanes: Collection[Lane]) -> list[Row]:
    """The heads of these lanes have left them: let the next ones be seen by claims. Answers with those."""
    if not lanes:
        return []
    return sorted(fetch(tick.db, query("free_lanes"), {"lanes": to_json(list(lanes))}), key=lambda row: row[0])


# --- what waits: rows of waiting_of.sql ---


def _end_waiting(tick: Tick, rows: Iterable[Sequence[Any]], event: Event, cause: EndCause, *, now: int) -> None:
    tick.db.executemany(query("end_waiting"), _ends(tick, rows, event, cause, now=now))


def _ends(
    tick: Tick,
    rows: Iterable[Sequence[Any]],
    event: Event,
    cause: EndCause,
    *,
    now: int,
    superseded_by: bytes | None = None,
) -> list[dict[str, Any]]:
    """The parameters of end_waiting.sql."""
    ends = []
    for seq, state, _, *job in rows:
        before = STATES.word(state)
        after = TRANSITIONS[before, event]
        ends.append(
            {
                "seq": seq,
                "claim_no": job[4],
                "before": state,
                "state": STATES.code(after),
                "now": now,
                "end_cause": END_CAUSES.code(cause),
                "superseded_by": superseded_by,
            }
        )
        tick.changes.append(row_change(job, before, after, end_cause=cause))
    return ends


def _free_lanes_of(tick: Tick, rows: Iterable[Sequence[Any]]) -> list[Row]:
    """Of all the lanes whose heads are among these rows, which wait no more."""
    lanes = {
        (job_type, subject_key, mode, queue)
        for _, state, behind, _, queue, job_type, mode, _, subject_key in rows
        if subject_key is not None and state == _QUEUED and not behind
    }
    return free_lanes(tick, lanes)


# --- what runs: rows of running_of.sql ---


def _claim_no(row: Row) -> int:
    return int(row[8])


def _stop_running(tick: Tick, row: Row, wanted_reason: StopReason, wanted_grace: int | None) -> Running:
    seq, own_grace, stored_reason, stored_grace, *job = row
    job_id = job[0]
    claim_no = _claim_no(row)
    present = STOP_REASONS.word_or_none(stored_reason)
    wanted = own_grace if wanted_grace is None else wanted_grace
    grace = wanted if stored_grace is None else min(wanted, stored_grace)
    raised = may_raise(present, wanted_reason)
    reason = wanted_reason if raised else present
    assert reason is not None
    if raised or grace != stored_grace:
        values = {
            "seq": seq,
            "claim_no": claim_no,
            "present": stored_reason,
            "reason": STOP_REASONS.code(reason),
            "grace_ms": grace,
        }
        fetch(tick.db, query("raise_stop"), values)
    if raised:
        tick.changes.append(row_change(job, State.RUNNING, State.RUNNING, stop_reason=reason))
    return Running(job_id=id_text(job_id), claim_no=claim_no, reason=reason, grace_ms=grace)


def _selector(selector: StopSelector) -> tuple[str, str | bytes]:
    """A condition of one indexed column, and its value."""
    match selector:
        case StopSelector(job_id=str(value), tag=None, chain_group_id=None):
            return "job_id = :value", id_bytes(value)
        case StopSelector(job_id=None, tag=str(value), chain_group_id=None):
            return "tag = :value", value
        case StopSelector(job_id=None, tag=None, chain_group_id=str(value)):
            return "chain_group_id = :value", value
    raise ValueError("exactly one of job_id, tag and chain_group_id selects the jobs to stop")
