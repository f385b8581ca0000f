"""`show`: all that is known of one job."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import click

from semtask.cli import render
from semtask.cli.arguments import now_ms
from semtask.cli.complete import job_words
from semtask.cli.ids import job_ids
from semtask.cli.session import Command, Session, pass_session
from semtask.client.messages import GET_JOB

if TYPE_CHECKING:
    from semtask.protocol.jobs import ArtifactView, AttemptView, JobView

_PREVIEW = 400
_SHOWN_ERROR = 100


@click.command(cls=Command)
@click.argument("job", metavar="ID", shell_complete=job_words)
@click.option("--payload", "with_payload", is_flag=True, help="Also show the arguments and the environment.")
@click.option("--secrets", "with_secrets", is_flag=True, help="Like --payload, without hiding values that look secret.")
@pass_session
def show(session: Session, /, job: str, with_payload: bool, with_secrets: bool) -> None:
    """Show one job: its times, attempts, errors, progress, files and result.

    ID: an id, the end of one, `last`, `last:2`, or `@subject`.
    """
    for job_id in job_ids(session, [job]):
        shown = ["secrets"] if with_secrets else ["payload"] if with_payload else []
        include = ["attempts", "result", *shown]
        found = session.stored.send(GET_JOB(job_id=job_id, include=include))
        if session.json:
            session.emit(render.job_json(found))
        elif session.quiet:
            session.line(found.job_id)
        else:
            for line in _details(session, found):
                session.line(line)


def _details(session: Session, job: JobView) -> list[str]:
    now = now_ms()
    state = render.paint(job.state, job.state, colored=session.colored)
    why = render.outcome(job)
    facts: list[tuple[str, Any]] = [
        ("job", job.job_id),
        ("state", f"{state} ({why})" if why else state),
        ("waits", render.why_waiting(job, now)),
        ("error", job.error),
        ("progress", render.progress_of(job)),
        ("attempts", render.attempt_of(job) if job.max_attempts > 1 or job.attempts > 1 else None),
        ("budgets used", _budgets(job)),
        ("command" if job.command else "task", job.command or job.job_type),
        ("name", job.job_type if job.command else None),
        ("queue", f"{job.queue}, priority {job.priority}"),
        ("subject", f"{job.subject_key}, generation {job.generation}" if job.subject_key else None),
        ("superseded by", job.superseded_by),
        ("retry of", job.retry_of),
        ("tag", job.tag),
        ("group", job.chain_group_id),
        ("created", _when(job.created_at, now)),
        ("due", _when(job.run_at, now)),
        ("started", _when(job.started_at, now)),
        ("finished", _when(job.finished_at, now)),
        ("took", None if (took := render.took(job, now)) == "-" else took),
        ("deadline", _when(job.deadline, now)),
        ("timeout", render.duration(job.timeout_ms) if job.timeout_ms else None),
        ("ttl", render.duration(job.ttl_ms) if job.ttl_ms else None),
        ("stopping", job.stop_reason if job.state == "RUNNING" else None),
        ("pid", job.pid if job.state == "RUNNING" else None),
        ("on interrupt", job.on_interrupt),
        ("log", job.log_path),
        ("result", _result(job)),
    ]
    width = max(len(name) for name, _ in facts)
    lines = []
    for name, value in facts:
        if value is not None:
            text = str(value) if name == "state" else render.printable(str(value))
            lines.append(f"{name:<{width}}  {text}")
    lines += [
        f"{'attempt ' + str(attempt.claim_no):<{width}}  {_attempt(attempt, now)}"
        for attempt in job.attempts_list or []
    ]
    lines += [f"{'artifact':<{width}}  {_artifact(artifact)}" for artifact in job.artifacts or []]
    if job.payload is not None:
        lines.append(json.dumps(job.payload, indent=2))
    if job.exception:
        lines += map(render.printable, render.exception_lines(job.exception))
    return lines


def _result(job: JobView) -> str | None:
    """The beginning of a task's result; None where there is nothing to tell."""
    if job.state != "DONE" or job.execution_mode != "IN_PROCESS":
        return None
    if any(artifact.is_result for artifact in job.artifacts or ()):
        return f"in a file; `semtask result {render.short(job.job_id)}` prints it"
    text = json.dumps(job.result, ensure_ascii=False)
    return text if len(text) <= _PREVIEW else f"{text[:_PREVIEW]}… (`semtask result` prints it all)"


def _artifact(artifact: ArtifactView) -> str:
    return render.printable(f"{artifact.name}, {render.size(artifact.size)}, {artifact.path}")


def _budgets(job: JobView) -> str | None:
    """What was counted against the job; None if nothing was."""
    counts = [(job.failures, "failure"), (job.crashes, "crash"), (job.interruptions, "interruption")]
    plural = {"crash": "crashes"}
    used = [f"{n} {word if n == 1 else plural.get(word, word + 's')}" for n, word in counts if n]
    return ", ".join(used) or None


def _when(epoch_ms: int | None, now: float) -> str | None:
    return None if epoch_ms is None else f"{render.iso(epoch_ms)} ({render.ago(epoch_ms, now)})"


def _attempt(attempt: AttemptView, now: float) -> str:
    sandbox = f", sandbox {attempt.sandbox}" if attempt.sandbox else ""
    return _course(attempt, now) + sandbox


def _course(attempt: AttemptView, now: float) -> str:
    if attempt.finished_at is None:
        return f"running for {render.took(attempt, now)}, pid {attempt.pid}"
    how = str(attempt.end_cause)
    if attempt.exit_code is not None:
        how += f", exit code {attempt.exit_code}"
    if attempt.signal is not None:
        how += f", signal {attempt.signal}"
    elif attempt.error and attempt.exit_code is None:
        how += f" ({textwrap.shorten(attempt.error, _SHOWN_ERROR)})"
    return f"{how} after {render.took(attempt, now)}"
