"""The end of attempts: what `model.retry.decide` says, written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
from msgspec import structs

from semtask.model.job import ExecutionMode, Job
from semtask.model.outcome import FailureClass, Outcome, unstorable
from semtask.model.retry import Decision, decide
from semtask.model.state import FINAL, EndCause, Event, State
from semtask.store.base import Change
from semtask.store.codes import END_CAUSES, STATES, STOP_REASONS
from semtask.store.requests import Finish, Finished
from semtask.store.sql import query
from semtask.store.sqlite_damage import UNREADABLE, Damage, quarantine
from semtask.store.sqlite_rows import fetch, fetch_value, id_bytes, job_change, to_job, to_json
from semtask.store.writer import Tick

# What an end raises that cannot be stored: a text that is no Unicode, a number beyond 64 bits, a broken rule.
REFUSED = (ValueError, OverflowError, TypeError, apsw.ConstraintError)
SUCCEEDED = Finished(decision=Decision(event=Event.SUCCEED, end_cause=EndCause.SUCCESS, attempts=1))


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
            end_cause=END_CAUSES.word_or_none(values["end_cause"]),
            stop_reason=STOP_REASONS.word_or_none(values["stop_reason"]),
        )
    )
    return Finished(decision=decision)


def _has_attempt_row(job: Job, outcome: Outcome, decision: Decision) -> bool:
    """A task that succeeds has none, for the sake of speed; nor has one that snoozes, which may do so forever."""
    snoozes = decision.event is Event.RETRY and outcome.failure is FailureClass.SNOOZE
    return job.execution_mode is ExecutionMode.SUBPROCESS or not (snoozes or decision.event is Event.SUCCEED)


def finish_many(tick: Tick, reports: Sequence[Finish]) -> list[Finished]:
    """Quickly; if one of them is refused, each by itself."""
    try:
        with tick.step():
            return _finish_quickly(tick, reports)
    except REFUSED:
        return [_finish_alone(tick, report) for report in reports]


def _finish_quickly(tick: Tick, reports: Sequence[Finish]) -> list[Finished]:
    """Tasks that succeeded and were not stopped in one statement, then what is left."""
    usual: dict[bytes, int] = {}
    for index, report in enumerate(reports):
        if _usual(report.outcome):
            usual.setdefault(id_bytes(report.job_id), index)
    ends = to_json([_end(reports[index]) for index in usual.values()])
    answers: dict[int, Finished] = {}
    for job_id, queue, job_type, subject_key in fetch(tick.db, query("succeed_tasks"), {"ends": ends}):
        index = usual[job_id]
        answers[index] = SUCCEEDED
        tick.changes.append(
            Change(
                job_id=reports[index].job_id,
                queue=queue,
                job_type=job_type,
                execution_mode=ExecutionMode.IN_PROCESS,
                before=State.RUNNING,
                after=State.DONE,
                claim_no=reports[index].claim_no,
                end_cause=EndCause.SUCCESS,
                subject_key=subject_key,
            )
        )
    return [answers.get(index) or finish(tick, report) for index, report in enumerate(reports)]


def _usual(outcome: Outcome) -> bool:
    return outcome.failure is None and outcome.end_cause is EndCause.SUCCESS and outcome.exit_code is None


def _end(report: Finish) -> Sequence[Any]:
    """For succeed_tasks.sql."""
    outcome = report.outcome
    job_id = report.job_id.replace("-", "")
    return job_id, report.claim_no, report.now, outcome.result, outcome.artifacts, outcome.progress


def _finish_alone(tick: Tick, report: Finish) -> Finished:
    """A report that cannot be stored must not keep its job running forever."""
    try:
        with tick.step():
            return finish(tick, report)
    except REFUSED as error:
        return finish(tick, structs.replace(report, outcome=unstorable(f"its end could not be stored: {error}")))


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
        "state": STATES.code(decision.state),
        "run_at": report.now + decision.delay_ms if decision.event is Event.RETRY else job.run_at,
        "started_at": None if decision.event is Event.GIVE_BACK else job.started_at,
        "finished_at": report.now if final else None,
        "end_cause": END_CAUSES.code_or_none(decision.end_cause) if final else None,
        "exit_code": report.outcome.exit_code,
        "signal": report.outcome.signal,
        "error": decision.error,
        "exception": report.outcome.exception,
        "result": report.outcome.result if decision.state is State.DONE else None,
        "artifacts": report.outcome.artifacts,
        "progress": report.outcome.progress,
        "stop_reason": STOP_REASONS.code_or_none(job.stop_reason) if final else None,
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
        "sandbox": report.outcome.sandbox,
    }
