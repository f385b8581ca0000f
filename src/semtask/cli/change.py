"""`cancel`."""

from __future__ import annotations

from typing import Any

import click

from semtask.cli import render
from semtask.cli.arguments import grace, job_ids
from semtask.cli.failure import Ended, describe, report
from semtask.cli.session import Command, Session, pass_session
from semtask.errors import RpcError


@click.command(cls=Command)
@click.argument("jobs", metavar="ID...", nargs=-1)
@click.option("-t", "--tag", help="All living jobs with this tag.")
@click.option("-g", "--group", help="All living jobs of this group.")
@click.option(
    "--grace", "grace_ms", type=grace, metavar="DURATION", help="From SIGTERM to SIGKILL; only shorter counts."
)
@pass_session
def cancel(
    session: Session, /, *, jobs: tuple[str, ...], tag: str | None, group: str | None, grace_ms: int | None
) -> None:
    """Cancel jobs: waiting ones end at once, running ones are stopped. ID: an id, the end of one, `last`, or `-`.

    Exit code 5 if a job had ended already; the others are cancelled all the same.
    """
    if sum(map(bool, (jobs, tag, group))) != 1:
        raise click.UsageError("give either ids, or --tag, or --group")
    extra = {} if grace_ms is None else {"grace_ms": grace_ms}
    if not jobs:
        selector = {"tag": tag} if tag else {"chain_group_id": group}
        answer = session.call("dev.cancel.v1", {**selector, **extra})
        _tell_many(session, answer)
        return
    worst = 0
    for job_id in job_ids(session, jobs):
        try:
            answer = session.call("dev.cancel.v1", {"job_id": job_id, **extra})
        except RpcError as error:
            worst = report(describe(error), as_json=session.json) or worst
        else:
            _tell_one(session, answer, job_id)
    if worst:
        raise Ended(worst)


def _tell_one(session: Session, answer: dict[str, Any], job_id: str) -> None:
    if session.json:
        session.emit({"schema": "cancelled.v1", **answer})
    elif session.quiet:
        session.line(job_id)
    else:
        session.notice(f"cancelling {render.short(job_id)}")


def _tell_many(session: Session, answer: dict[str, Any]) -> None:
    if session.json:
        session.emit({"schema": "cancelled.v1", **answer})
    else:
        count = answer["cancelled_count"]
        session.notice(f"cancelling {count} job{'s' * (count != 1)}")
