"""`cancel` and `retry`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from semtask.cli import render
from semtask.cli.complete import job_words, queue_names, tag_names
from semtask.cli.failure import Ended, describe, report
from semtask.cli.ids import job_ids
from semtask.cli.job_options import grace
from semtask.cli.session import Command, Session, pass_session
from semtask.client.messages import CANCEL, LIST_QUEUES, RETRY, json_of
from semtask.errors import Conflict, RpcError

if TYPE_CHECKING:
    from semtask.protocol.jobs import Cancelled, Retried


@click.command(cls=Command)
@click.argument("jobs", metavar="ID...", nargs=-1, shell_complete=job_words)
@click.option("-t", "--tag", shell_complete=tag_names, help="All jobs with this tag that have not ended.")
@click.option("-g", "--group", help="All jobs of this group that have not ended.")
@click.option(
    "--grace",
    "grace_ms",
    type=grace,
    metavar="DURATION",
    help="The time from SIGTERM to SIGKILL; it can only be shortened.",
)
@pass_session
def cancel(
    session: Session, /, *, jobs: tuple[str, ...], tag: str | None, group: str | None, grace_ms: int | None
) -> None:
    """Cancel jobs: waiting ones end immediately, running ones are stopped. ID: an id, the end of one, `last`, or `-`.

    Exit code 5 if a job had ended already; the others are cancelled all the same.
    """
    if sum(map(bool, (jobs, tag, group))) != 1:
        raise click.UsageError("give either ids, or --tag, or --group")
    extra = {} if grace_ms is None else {"grace_ms": grace_ms}
    if not jobs:
        selector = {"tag": tag} if tag else {"chain_group_id": group}
        answer = session.stored.send(CANCEL(**selector, **extra))
        _tell_many(session, answer)
        return

    def cancel_one(job_id: str) -> None:
        answer = session.stored.send(CANCEL(job_id=job_id, **extra))
        if not answer.cancelled:
            details = {"job_id": job_id, "state": answer.ended_as}
            raise Conflict(f"job {job_id} has already ended: {answer.ended_as}", details=details)
        _tell_one(session, answer, job_id)

    _each(session, jobs, cancel_one)


def _each(session: Session, words: Iterable[str], change: Callable[[str], None]) -> None:
    """Change one job after the other; a refusal is told and does not keep the others from it."""
    worst = 0
    for job_id in job_ids(session, words):
        try:
            change(job_id)
        except RpcError as error:
            worst = report(describe(error), as_json=session.json) or worst
    if worst:
        raise Ended(worst)


def _tell_one(session: Session, answer: Cancelled, job_id: str) -> None:
    if session.json:
        session.emit({"schema": "cancelled.v1", **json_of(answer)})
    elif session.quiet:
        session.line(job_id)
    else:
        session.notice(f"cancelling {render.short(job_id)}")


def _tell_many(session: Session, answer: Cancelled) -> None:
    if session.json:
        session.emit({"schema": "cancelled.v1", **json_of(answer)})
    else:
        count = answer.cancelled_count
        session.notice(f"cancelling {count} job{'s' * (count != 1)}")


@click.command(cls=Command)
@click.argument("jobs", metavar="ID...|--failed", nargs=-1, shell_complete=job_words)
@click.option("--failed", is_flag=True, help="All failed jobs that were not retried yet, or those of one ...")
@click.option("-Q", "--queue", shell_complete=queue_names, help="... queue,")
@click.option("-t", "--tag", shell_complete=tag_names, help="... tag,")
@click.option("-g", "--group", help="... group.")
@pass_session
def retry(session: Session, /, *, jobs: tuple[str, ...], failed: bool, **options: str | None) -> None:
    """Enqueue finished jobs again, as copies, and print the ids of the copies.

    ID: an id, the end of one, `last`, `@subject`, or `-`. Exit code 5 if a job has not ended; the others are retried
    all the same.
    """
    parameters = {"queue": "queue", "tag": "tag", "group": "chain_group_id"}
    selector = {parameters[name]: value for name, value in options.items() if value is not None}
    if bool(jobs) == failed or len(selector) > 1 or (jobs and selector):
        raise click.UsageError("give either ids, or --failed, alone or with one of --queue, --tag and --group")
    if jobs:
        _each(session, jobs, lambda job_id: _tell_copies(session, session.stored.send(RETRY(job_id=job_id))))
        return
    selectors = [selector] if selector else _queues_with_failures(session)
    count = sum(_retry_failed(session, one) for one in selectors)
    session.notice(f"retrying {count} failed job{'s' * (count != 1)}" if count else "there is no failed job to retry")


def _queues_with_failures(session: Session) -> list[dict[str, str]]:
    return [{"queue": q.name} for q in session.stored.send(LIST_QUEUES()).queues if q.failed]


def _retry_failed(session: Session, selector: dict[str, str]) -> int:
    """Goes on until all that had failed are retried: it ends where it meets copies of its own that have failed."""
    made: set[str] = set()
    while True:
        answer = session.stored.send(RETRY(**selector))
        _tell_copies(session, answer)
        made |= {job.job_id for job in answer.jobs}
        if not answer.more or any(job.retry_of in made for job in answer.jobs):
            return len(made)


def _tell_copies(session: Session, answer: Retried) -> None:
    for job in answer.jobs:
        if session.json:
            session.emit({"schema": "retried.v1", **json_of(job)})
        else:
            session.line(job.job_id)
