"""What the writes of the port do inside a tick. Every function runs in the writer thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apsw
from msgspec import structs

from semtask.model.job import ClaimFacts, ExecutionMode, Job, OnInterrupt, ProcessIdentity
from semtask.model.outcome import FailureClass, Outcome, unstorable
from semtask.model.retry import Decision, decide
from semtask.model.state import FINAL, EndCause, Event, State
from semtask.store.base import Change, ClaimRequest, Finish, Finished, Promoted
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
    to_claimed_job,
    to_job,
    to_json,
)
from semtask.store.sqlite_stop import free_lanes
from semtask.store.writer import Tick

# What a value that SQLite cannot take raises: a text that is no Unicode, a number beyond 64 bits.
UNSTORABLE = (ValueError, OverflowError, TypeError)
SUCCEEDED = Finished(decision=Decision(event=Event.SUCCEED, end_cause=EndCause.SUCCESS, attempts=1))

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
    free_lanes_behind(tick, claimed)
    return claimed


def free_lanes_behind(tick: Tick, claimed: Iterable[Job]) -> None:
    """These were the heads of their lanes."""
    lanes = [(j.job_type, j.subject_key, j.execution_mode, j.queue) for j in claimed if j.subject_key is not None]
    free_lanes(tick, lanes)


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
    facts = request.facts(id_text(candidate[3]), candidate[4] + 1)
    claimed = claim_rows(tick, [candidate], now=request.now, node_id=request.node_id, facts=facts)
    if not claimed:
        return None
    [job] = claimed
    if job.execution_mode is ExecutionMode.SUBPROCESS or job.on_interrupt is OnInterrupt.FAIL:
        tick.require_sync()  # a claim that a power cut forgets would run twice
    return job


def claim_rows(tick: Tick, candidates: Iterable[Row], *, now: int, node_id: str, facts: ClaimFacts) -> list[Job]:
    """Claim rows of ready_jobs.sql. One that cannot be decoded goes into quarantine instead."""
    values = {"now": now, "node_id": node_id, "claim": to_json(facts)}
    claimed = []
    for _, seq, _, _, claim_no, *_ in candidates:
        try:
            rows = fetch(tick.db, query("claim_job"), {**values, "seq": seq, "claim_no": claim_no})
            if rows:
                job = to_claimed_job(rows[0], started_at=now, node_id=node_id, claim=facts)
                tick.changes.append(job_change(job, State.QUEUED, State.RUNNING, claim_no=job.claim_no))
                claimed.append(job)
        except UNREADABLE as error:
            quarantine(tick, Damage(seq, claim_no + 1, str(error)), now=now, before=State.QUEUED)
    return claimed


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
    if decision.attempts and _has_attempt_row(job, report.outcome, decision):
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


def _has_attempt_row(job: Job, outcome: Outcome, decision: Decision) -> bool:
    """Not so a task that succeeds, for the sake of speed, nor one that snoozes, for it may do so for ever."""
    snoozes = decision.event is Event.RETRY and outcome.failure is FailureClass.SNOOZE
    return job.execution_mode is ExecutionMode.SUBPROCESS or not (snoozes or decision.event is Event.SUCCEED)


def finish_many(tick: Tick, reports: Sequence[Finish]) -> list[Finished]:
    """Quickly; if one of them is refused, each by itself."""
    done = len(tick.changes)
    tick.db.execute("SAVEPOINT finishes")
    try:
        answers = _finish_quickly(tick, reports)
    except (apsw.ConstraintError, *UNSTORABLE):
        del tick.changes[done:]
        tick.db.execute("ROLLBACK TO finishes")
        answers = [_finish_alone(tick, report) for report in reports]
    tick.db.execute("RELEASE finishes")
    return answers


def _finish_quickly(tick: Tick, reports: Sequence[Finish]) -> list[Finished]:
    """Tasks that succeeded and were not stopped first, in one go; then what is left."""
    answers: dict[int, Finished] = {}
    usual = [_succeeded(index, report) for index, report in enumerate(reports) if _usual(report.outcome)]
    for index, queue, job_type, subject_key in tick.db.executemany(query("succeed_task"), usual):
        report = reports[index]
        tick.changes.append(
            Change(
                job_id=report.job_id,
                queue=queue,
                job_type=job_type,
                execution_mode=ExecutionMode.IN_PROCESS,
                before=State.RUNNING,
                after=State.DONE,
                claim_no=report.claim_no,
                end_cause=EndCause.SUCCESS,
                subject_key=subject_key,
            )
        )
        answers[index] = SUCCEEDED
    return [answers.get(index) or finish(tick, report) for index, report in enumerate(reports)]


def _usual(outcome: Outcome) -> bool:
    return outcome.failure is None and outcome.end_cause is EndCause.SUCCESS and outcome.exit_code is None


def _succeeded(index: int, report: Finish) -> dict[str, Any]:
    return {
        "index": index,
        "job_id": id_bytes(report.job_id),
        "claim_no": report.claim_no,
        "now": report.now,
        "result": report.outcome.result,
        "artifacts": report.outcome.artifacts,
        "progress": report.outcome.progress,
    }


def _finish_alone(tick: Tick, report: Finish) -> Finished:
    """A report that cannot be stored must not keep its job running for ever."""
    done = len(tick.changes)
    tick.db.execute("SAVEPOINT finish")
    try:
        answer = finish(tick, report)
    except (apsw.ConstraintError, *UNSTORABLE) as error:
        del tick.changes[done:]
        tick.db.execute("ROLLBACK TO finish")
        answer = finish(tick, structs.replace(report, outcome=unstorable(f"its end could not be stored: {error}")))
    tick.db.execute("RELEASE finish")
    return answer


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
        "exception": report.outcome.exception,
        "result": report.outcome.result if decision.state is State.DONE else None,
        "artifacts": report.outcome.artifacts,
        "progress": report.outcome.progress,
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
