"""What the writes of the port do inside a tick. Every function runs in the writer thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from semtask.model.job import ExecutionMode, Job, OnInterrupt, ProcessIdentity
from semtask.model.retry import Decision, decide
from semtask.model.state import FINAL, EndCause, Event, State
from semtask.store.base import ClaimRequest, Finish, Finished, Promoted
from semtask.store.sql import query
from semtask.store.sqlite_damage import UNREADABLE, Damage, quarantine
from semtask.store.sqlite_rows import (
    Row,
    fetch,
    fetch_value,
    id_bytes,
    id_text,
    job_change,
    row_change,
    to_job,
    to_json,
)
from semtask.store.sqlite_stop import free_lanes
from semtask.store.writer import Tick

# --- claim ---


def claim(tick: Tick, request: ClaimRequest) -> list[Job]:
    free = dict(request.queues)
    claimed: list[Job] = []
    looking = True
    while looking and len(claimed) < request.limit:
        before = len(tick.changes)
        looking = False
        for candidate in _candidates(tick, request, free, request.limit - len(claimed)):
            job = _claim_one(tick, request, candidate)
            if job is None:
                # Its subject began to run in this very round, or its row was damaged: look again, or a worse job would
                # overtake a better one.
                looking = len(tick.changes) > before
                break
            free[job.queue] -= 1
            claimed.append(job)
    lanes = [(j.job_type, j.subject_key, j.execution_mode, j.queue) for j in claimed if j.subject_key is not None]
    free_lanes(tick, lanes)
    return claimed


def _candidates(tick: Tick, request: ClaimRequest, free: Mapping[str, int], limit: int) -> list[Row]:
    """The best `limit` jobs over all the queues, best first."""
    found: list[Row] = []
    for queue, slots in free.items():
        if slots > 0:
            where = {
                "mode": request.mode,
                "queue": queue,
                "min_priority": request.min_priority,
                "now": request.now,
                "limit": min(slots, limit),
            }
            found += fetch(tick.db, query("ready_jobs"), where)
    found.sort()
    return found[:limit]


def _claim_one(tick: Tick, request: ClaimRequest, candidate: Row) -> Job | None:
    _, seq, _, job_id, claim_no = candidate
    values = {
        "seq": seq,
        "claim_no": claim_no,
        "now": request.now,
        "node_id": request.node_id,
        "claim": to_json(request.facts(id_text(job_id), claim_no + 1)),
    }
    try:
        rows = fetch(tick.db, query("claim_job"), values)
        if not rows:
            return None
        job = to_job(rows[0])
    except UNREADABLE as error:
        damage = Damage(seq, claim_no + 1, str(error))
        quarantine(tick, damage, now=request.now, before=State.QUEUED)
        return None
    if job.execution_mode is ExecutionMode.SUBPROCESS or job.on_interrupt is OnInterrupt.FAIL:
        tick.require_sync()  # a claim that a power cut forgets would run twice
    tick.changes.append(job_change(job, State.QUEUED, State.RUNNING, claim_no=job.claim_no))
    return job


# --- the running attempt ---


def record_process(tick: Tick, job_id: str, claim_no: int, process: ProcessIdentity) -> bool:
    values = {"job_id": id_bytes(job_id), "claim_no": claim_no, "process": to_json(process)}
    return bool(fetch(tick.db, query("record_process"), values))


def record_kill_failed(tick: Tick, job_id: str, claim_no: int, at: int) -> bool:
    values = {"job_id": id_bytes(job_id), "claim_no": claim_no, "at": at}
    return bool(fetch(tick.db, query("record_kill_failed"), values))


def finish(tick: Tick, report: Finish) -> Finished:
    try:
        rows = fetch(tick.db, query("get_job"), {"job_id": id_bytes(report.job_id)})
        if not rows:
            return Finished(decision=None)
        job = to_job(rows[0])
    except UNREADABLE as error:
        return _finish_damaged(tick, report, str(error))
    decision = decide(job, report.outcome, jitter=report.jitter)
    values = _finished_row(job, report, decision)
    if not fetch(tick.db, query("finish_job"), values):  # no longer the present claim
        return Finished(decision=None)
    if report.outcome.executed and (job.execution_mode is ExecutionMode.SUBPROCESS or decision.event != Event.SUCCEED):
        tick.db.execute(query("insert_attempt"), _attempt_row(job, report, decision))
    tick.changes.append(
        job_change(
            job,
            State.RUNNING,
            decision.state,
            claim_no=job.claim_no,
            run_at=values["run_at"],
            end_cause=values["end_cause"],
            stop_reason=values["stop_reason"],
        )
    )
    return Finished(decision=decision)


def _finish_damaged(tick: Tick, report: Finish, why: str) -> Finished:
    seq = fetch_value(tick.db, query("seq_of"), {"job_id": id_bytes(report.job_id)})
    error = quarantine(tick, Damage(seq, report.claim_no, why), now=report.now, before=State.RUNNING)
    if error is None:
        return Finished(decision=None)
    return Finished(decision=Decision(event=Event.FAIL, end_cause=EndCause.BAD_PAYLOAD, error=error))


def _finished_row(job: Job, report: Finish, decision: Decision) -> dict[str, Any]:
    final = decision.state in FINAL
    return {
        "seq": job.seq,
        "claim_no": report.claim_no,
        "state": decision.state,
        "run_at": report.now + decision.delay_ms if decision.event is Event.RETRY else job.run_at,
        "started_at": None if decision.event is Event.GIVE_BACK else job.started_at,
        "finished_at": report.now if final else None,
        "end_cause": decision.end_cause if final else None,
        "exit_code": report.outcome.exit_code,
        "signal": report.outcome.signal,
        "error": decision.error,
        "stop_reason": job.stop_reason if final else None,
        "stop_grace_ms": job.stop_grace_ms if final else None,
        "kill_failed_at": job.kill_failed_at if final else None,
        "attempts": decision.attempts,
        "failures": decision.failures,
        "crashes": decision.crashes,
        "interruptions": decision.interruptions,
    }


def _attempt_row(job: Job, report: Finish, decision: Decision) -> dict[str, Any]:
    return {
        "seq": job.seq,
        "claim_no": job.claim_no,
        "started_at": job.started_at,
        "finished_at": report.now,
        "end_cause": decision.end_cause,
        "exit_code": report.outcome.exit_code,
        "signal": report.outcome.signal,
        "error": decision.error,
        "stop_reason": job.stop_reason,
        "pid": job.process.pid if job.process else None,
        "log_bytes": report.outcome.log_bytes,
    }


# --- the rest ---


def promote(tick: Tick, now: int, limit: int) -> Promoted:
    rows = fetch(tick.db, query("promote_due"), {"now": now, "limit": limit})
    rows.sort(key=lambda row: row[:2])
    for run_at, _, expires_at, *job in rows:
        tick.changes.append(row_change(job, State.SCHEDULED, State.QUEUED, run_at=run_at, expires_at=expires_at))
    next_due = fetch_value(tick.db, query("next_due"))
    return Promoted(count=len(rows), next_due=next_due)


def configure_queue(tick: Tick, settings: Mapping[str, Any]) -> None:
    tick.db.execute(query("configure_queue"), settings)


def count(tick: Tick, increments: Mapping[str, int]) -> None:
    rows = [{"name": name, "value": value} for name, value in increments.items()]
    tick.db.executemany(query("add_to_counter"), rows)


def close_books(tick: Tick) -> None:
    """Bring the kept counts of the queues up to the changes of this tick."""
    deltas: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(State, 0))
    for change in tick.changes:
        if change.before is not change.after:
            delta = deltas[change.queue]
            delta[change.after] += 1
            if change.before is not None:
                delta[change.before] -= 1
    rows = [{"name": queue, **delta} for queue, delta in deltas.items()]
    tick.db.executemany(query("add_to_queue"), rows)
