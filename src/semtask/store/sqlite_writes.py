"""What the writes of the port do inside a tick. Every function runs in the writer thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from semtask.errors import Conflict, ValidationError
from semtask.model.job import ExecutionMode, Job, NewJob, OnDuplicate, OnInterrupt, ProcessIdentity
from semtask.model.retry import Decision, decide
from semtask.model.state import FINAL, EndCause, Event, State, StopReason, may_raise
from semtask.store.base import (
    Change,
    ClaimRequest,
    Finish,
    Finished,
    Inserted,
    Promoted,
    Running,
    Stopped,
    StopRequest,
    StopSelector,
)
from semtask.store.sql import query
from semtask.store.sqlite_rows import Row, fetch, fetch_value, id_bytes, id_text, of_new_job, to_job, to_json
from semtask.store.writer import Tick

# --- insert ---


def insert(tick: Tick, jobs: Sequence[NewJob]) -> list[Inserted]:
    known = _known_keys(tick, [job.idempotency_key for job in jobs if job.idempotency_key is not None])
    seq = _allocate(tick, len(jobs))
    rows: list[dict[str, Any]] = []
    answers: list[Inserted] = []
    for index, job in enumerate(jobs):
        key = job.idempotency_key
        if key is not None and key in known:
            answers.append(_deduplicated(known[key], job, index))
            continue
        state = State.SCHEDULED if job.run_at is not None and job.run_at > job.created_at else State.QUEUED
        generation = _next_generation(tick, job)
        rows.append(of_new_job(job, seq + index, state, generation))
        answer = Inserted(job_id=job.job_id, queue=job.queue, state=state, generation=generation)
        answers.append(answer)
        if key is not None:
            known[key] = job.content_hash, answer
        tick.changes.append(_change(job, None, state, claim_no=0, run_at=job.run_at))
    before = tick.db.total_changes()
    tick.db.executemany(query("insert_job"), rows)
    if tick.db.total_changes() - before != len(rows):
        raise Conflict("a job_id of this request belongs to a stored job already; nothing was stored")
    return answers


def _allocate(tick: Tick, count: int) -> int:
    """The first of `count` numbers that were never given out before."""
    return int(fetch_value(tick.db, query("allocate_seq"), {"count": count}))


def _known_keys(tick: Tick, keys: Sequence[str]) -> dict[str, tuple[bytes, Inserted]]:
    if not keys:
        return {}
    return {
        key: (
            content_hash,
            Inserted(job_id=id_text(job_id), queue=queue, state=State(state), generation=generation, deduplicated=True),
        )
        for key, content_hash, job_id, queue, state, generation in fetch(
            tick.db, query("find_by_keys"), {"keys": to_json(keys)}
        )
    }


def _deduplicated(stored: tuple[bytes, Inserted], job: NewJob, index: int) -> Inserted:
    content_hash, answer = stored
    if content_hash != job.content_hash:
        raise Conflict(
            f"the idempotency key {job.idempotency_key!r} belongs to job {answer.job_id}, which has other content; "
            "use a new key for a new job",
            details={"job_id": answer.job_id, "index": index, "idempotency_key": job.idempotency_key},
        )
    return Inserted(
        job_id=answer.job_id, queue=answer.queue, state=answer.state, generation=answer.generation, deduplicated=True
    )


def _next_generation(tick: Tick, job: NewJob) -> int | None:
    if job.subject_key is None:
        return None
    if job.on_duplicate not in {None, OnDuplicate.AFTER}:
        raise ValidationError(f"on_duplicate={job.on_duplicate} is not served by this version")
    subject = {"job_type": job.job_type, "subject_key": job.subject_key}
    return int(fetch_value(tick.db, query("next_generation"), subject))


# --- claim ---


def claim(tick: Tick, request: ClaimRequest) -> list[Job]:
    free = dict(request.queues)
    claimed: list[Job] = []
    while len(claimed) < request.limit:
        before = len(claimed)
        for candidate in _candidates(tick, request.mode, free, request.limit - before):
            job = _claim_one(tick, request, candidate)
            if job is None:
                break  # its subject began to run in this very round: look again, or a worse job would overtake
            free[job.queue] -= 1
            claimed.append(job)
        else:
            break
        if len(claimed) == before:
            break
    return claimed


def _candidates(tick: Tick, mode: ExecutionMode, free: Mapping[str, int], limit: int) -> list[Row]:
    """The best `limit` jobs over all the queues, best first."""
    found: list[Row] = []
    for queue, slots in free.items():
        if slots > 0:
            where = {"mode": mode, "queue": queue, "limit": min(slots, limit)}
            found += fetch(tick.db, query("ready_jobs"), where)
    found.sort()
    return found[:limit]


def _claim_one(tick: Tick, request: ClaimRequest, candidate: Row) -> Job | None:
    _, seq, _, job_id, claim_no = candidate
    facts = request.facts(id_text(job_id), claim_no + 1)
    rows = fetch(
        tick.db,
        query("claim_job"),
        {
            "seq": seq,
            "claim_no": claim_no,
            "now": request.now,
            "node_id": request.node_id,
            "claim": to_json(facts),
        },
    )
    if not rows:
        return None
    job = to_job(rows[0])
    if job.execution_mode is ExecutionMode.SUBPROCESS or job.on_interrupt is OnInterrupt.FAIL:
        tick.require_sync()  # a claim that a power cut forgets would run twice
    tick.changes.append(_change(job, State.QUEUED, State.RUNNING, claim_no=job.claim_no))
    return job


# --- the running attempt ---


def record_process(tick: Tick, job_id: str, claim_no: int, process: ProcessIdentity) -> bool:
    values = {"job_id": id_bytes(job_id), "claim_no": claim_no, "process": to_json(process)}
    return bool(fetch(tick.db, query("record_process"), values))


def record_kill_failed(tick: Tick, job_id: str, claim_no: int, at: int) -> bool:
    values = {"job_id": id_bytes(job_id), "claim_no": claim_no, "at": at}
    return bool(fetch(tick.db, query("record_kill_failed"), values))


def finish(tick: Tick, report: Finish) -> Finished:
    rows = fetch(tick.db, query("get_job"), {"job_id": id_bytes(report.job_id)})
    if not rows:
        return Finished(decision=None)
    job = to_job(rows[0])
    decision = decide(job, report.outcome, jitter=report.jitter)
    values = _finished_row(job, report, decision)
    if not fetch(tick.db, query("finish_job"), values):  # no longer the present claim
        return Finished(decision=None)
    if report.outcome.executed and (job.execution_mode is ExecutionMode.SUBPROCESS or decision.event != Event.SUCCEED):
        tick.db.execute(query("insert_attempt"), _attempt_row(job, report, decision))
    tick.changes.append(
        _change(
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


# --- stop ---


def stop(tick: Tick, request: StopRequest) -> Stopped:
    selector, value = _selector(request.selector)
    where = {"value": value}
    found, state = fetch(tick.db, query("count_of").format(selector=selector), where)[0]
    ended = 0
    if request.reason is StopReason.CANCEL:
        for waiting in (State.SCHEDULED, State.QUEUED):
            ended += _cancel_waiting(tick, selector, {**where, "state": waiting, "now": request.now})
    running = fetch(tick.db, query("running_of").format(selector=selector), where)
    stopping = [_stop_running(tick, request, row) for row in running]
    named = request.selector.job_id is not None and found and State(state) in FINAL
    return Stopped(found=found, ended=ended, stopping=stopping, final_state=State(state) if named else None)


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


def _cancel_waiting(tick: Tick, selector: str, where: Mapping[str, Any]) -> int:
    rows = fetch(tick.db, query("cancel_waiting").format(selector=selector), where)
    for _, *job in sorted(rows):
        tick.changes.append(_row_change(job, where["state"], State.CANCELLED, end_cause=EndCause.CANCELLED))
    return len(rows)


def _stop_running(tick: Tick, request: StopRequest, row: Row) -> Running:
    seq, own_grace, stored_reason, stored_grace, *job = row
    job_id, *_, claim_no = job
    present = StopReason(stored_reason) if stored_reason is not None else None
    wanted = own_grace if request.grace_ms is None else request.grace_ms
    grace = wanted if stored_grace is None else min(wanted, stored_grace)
    raised = may_raise(present, request.reason)
    reason = request.reason if raised else present
    assert reason is not None
    if raised or grace != stored_grace:
        values = {"seq": seq, "claim_no": claim_no, "present": present, "reason": reason, "grace_ms": grace}
        fetch(tick.db, query("raise_stop"), values)
    if raised:
        tick.changes.append(_row_change(job, State.RUNNING, State.RUNNING, stop_reason=reason))
    return Running(job_id=id_text(job_id), claim_no=claim_no, reason=reason, grace_ms=grace)


# --- the rest ---


def promote(tick: Tick, now: int, limit: int) -> Promoted:
    rows = fetch(tick.db, query("promote_due"), {"now": now, "limit": limit})
    for run_at, _, *job in sorted(rows):
        tick.changes.append(_row_change(job, State.SCHEDULED, State.QUEUED, run_at=run_at))
    next_due = fetch_value(tick.db, query("next_due"))
    return Promoted(count=len(rows), next_due=next_due)


def configure_queue(tick: Tick, name: str, paused: bool | None, concurrency: int | None, keep: bool) -> None:
    values = {"name": name, "paused": paused, "concurrency": concurrency, "keep_concurrency": keep}
    tick.db.execute(query("configure_queue"), values)


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


def _change(job: Job | NewJob, before: State | None, after: State, **details: Any) -> Change:
    return Change(
        job_id=job.job_id,
        queue=job.queue,
        job_type=job.job_type,
        execution_mode=job.execution_mode,
        before=before,
        after=after,
        **details,
    )


def _row_change(row: Sequence[Any], before: State, after: State, **details: Any) -> Change:
    """From the columns job_id, queue, job_type, execution_mode, claim_no."""
    job_id, queue, job_type, mode, claim_no = row
    return Change(
        job_id=id_text(job_id),
        queue=queue,
        job_type=job_type,
        execution_mode=ExecutionMode(mode),
        before=before,
        after=after,
        claim_no=claim_no,
        **details,
    )
