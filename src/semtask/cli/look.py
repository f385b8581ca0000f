"""`ls` and `wait`: they change nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import click

from semtask.cli import render
from semtask.cli.arguments import duration, now_ms, past
from semtask.cli.complete import job_words, queue_names, tag_names
from semtask.cli.exit_codes import exit_code
from semtask.cli.failure import TIMED_OUT
from semtask.cli.follow import Explanation
from semtask.cli.ids import job_ids
from semtask.cli.session import Command, Session, pass_session
from semtask.client.messages import GET_JOB, QUERY_JOBS
from semtask.client.patience import send_patiently
from semtask.client.waiting import MOST_IDS, wait_for_ends
from semtask.model.state import FINAL, EndCause, State

if TYPE_CHECKING:
    from semtask.protocol.jobs import JobView

_PAGE = 200
_WATCH_S = 1.0
_ENTER_SCREEN, _LEAVE_SCREEN, _CLEAR_SCREEN = "\x1b[?1049h", "\x1b[?1049l", "\x1b[H\x1b[J"


# --- ls --------------------------------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.option(
    "-s",
    "--state",
    "states",
    multiple=True,
    type=click.Choice(list(State), case_sensitive=False),
    help="Only this state.",
)
@click.option("-Q", "--queue", "queues", multiple=True, shell_complete=queue_names, help="Only this queue.")
@click.option("-t", "--tag", shell_complete=tag_names, help="Only with this tag.")
@click.option("-g", "--group", help="Only of this group.")
@click.option("-n", "--name", help="Only with this name (job_type).")
@click.option("--subject", metavar="KEY", help="Only with a subject that begins like this.")
@click.option("--since", type=past, metavar="DURATION|TIME", help="Only jobs enqueued since then: 1h (ago), or 18:00.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="How many at most.")
@click.option("--cursor", help="Continue where the last list ended.")
@click.option("-w", "--watch", is_flag=True, help="Show it again every second, until Ctrl-C; on a terminal.")
@pass_session
def ls(session: Session, /, *, states: tuple[State, ...], queues: tuple[str, ...], **options: Any) -> None:
    """List jobs, newest first. -s, -Q may be given several times."""
    given = {
        "state": list(states),
        "queue": list(queues),
        "tag": options["tag"],
        "chain_group_id": options["group"],
        "job_type": options["name"],
        "subject_key_prefix": options["subject"],
        "created_after": options["since"],
    }
    wanted = {name: value for name, value in given.items() if value}
    limit, cursor = options["limit"], options["cursor"]
    if options["watch"]:
        _watch(session, lambda rows: _job_lines(session, _jobs(session, wanted, min(limit, rows - 1), cursor)[0]))
        return
    jobs, cursor = _jobs(session, wanted, limit, cursor)
    for line in _job_lines(session, jobs):
        session.line(line)
    if cursor is not None:
        session.notice(f"there are more jobs: add --limit N, or --cursor {cursor}")


def _jobs(session: Session, wanted: dict[str, Any], limit: int, cursor: str | None) -> tuple[list[JobView], str | None]:
    """At most `limit` jobs, and where the list goes on."""
    jobs: list[JobView] = []
    while limit > len(jobs):
        page = {"filter": wanted, "limit": min(limit - len(jobs), _PAGE), **({"cursor": cursor} if cursor else {})}
        answer = send_patiently(session.stored.send, QUERY_JOBS(**page))
        jobs += answer.items
        cursor = answer.next_cursor
        if cursor is None:
            break
    return jobs, cursor


def _watch(session: Session, lines: Callable[[int], list[str]]) -> None:
    """Fill the screen with the lines again and again; `lines` is given its height. Ctrl-C ends it."""
    if not session.terminal or session.json or session.quiet:
        raise click.UsageError("--watch needs a terminal, and no --json or --quiet")
    session.write(_ENTER_SCREEN)
    try:
        while True:
            shown = lines(render.screen_size()[1])
            session.write(_CLEAR_SCREEN + "\n".join(shown))
            time.sleep(_WATCH_S)
    finally:
        session.write(_LEAVE_SCREEN)


def _job_lines(session: Session, jobs: list[JobView]) -> list[str]:
    import json

    if session.json:
        return [json.dumps(render.job_json(job), separators=(",", ":")) for job in jobs]
    if session.quiet:
        return [job.job_id for job in jobs]
    if not session.terminal:
        return ["\t".join(_plain_row(job)) for job in jobs]
    now = now_ms()
    rows = [
        [
            render.short(job.job_id),
            render.paint(job.state, job.state, colored=session.colored),
            job.queue,
            render.ago(job.run_at if job.state == "SCHEDULED" else job.created_at, now),
            render.took(job, now),
            render.outcome(job),
            render.name_of(job),
        ]
        for job in jobs
    ]
    return render.table(["ID", "STATE", "QUEUE", "WHEN", "TOOK", "WHY", "COMMAND"], rows, right=frozenset({4}))


def _plain_row(job: JobView) -> list[str]:
    return [
        job.job_id,
        job.state,
        job.queue,
        render.iso(job.created_at),
        render.outcome(job),
        render.name_of(job),
    ]


# --- wait ------------------------------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("jobs", metavar="ID...", nargs=-1, required=True, shell_complete=job_words)
@click.option("--any/--all", "any_of", default=False, help="Wait until one has ended, or all. Default: all.")
@click.option(
    "--timeout",
    "timeout_ms",
    type=duration,
    metavar="DURATION",
    help="How long to wait; then exit with 124. Default: no limit.",
)
@click.option("--exit-status", is_flag=True, help="Exit with the code of the first job that did not succeed.")
@pass_session
def wait(session: Session, /, *, jobs: tuple[str, ...], any_of: bool, timeout_ms: int | None, exit_status: bool) -> int:
    """Wait for jobs to end. ID: an id, the end of one, `last`, `last:2`, `@subject`, or `-` for ids on stdin.

    Ctrl-C ends the waiting and not the jobs.
    """
    ids = job_ids(session, jobs)
    if any_of and len(ids) > MOST_IDS:
        raise click.UsageError(f"{len(ids)} jobs are too many for --any; at most {MOST_IDS}")
    deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
    found: list[JobView] = []
    explanation = Explanation(session)
    timed_out = False
    for begin in range(0, len(ids), MOST_IDS):
        some = ids[begin : begin + MOST_IDS]
        mode: Literal["any", "all"] = "any" if any_of else "all"
        answer = wait_for_ends(session.stored.send, some, explanation.give, mode=mode, deadline=deadline)
        found += answer.jobs
        timed_out = timed_out or answer.timed_out
    ended = [job for job in found if job.state in FINAL]
    for job in ended:
        _tell_end(session, job)
    if timed_out:
        session.notice(f"{len(ids) - len(ended)} of {len(ids)} jobs have not ended yet")
        return TIMED_OUT
    return _exit_status(session, ended) if exit_status else 0


def _tell_end(session: Session, job: JobView) -> None:
    if session.json:
        session.emit(render.job_json(job))
    elif session.quiet:
        session.line(job.job_id)
    else:
        session.line(render.sentence(job))


def _exit_status(session: Session, ended: list[JobView]) -> int:
    for job in ended:
        failed_start = job.end_cause == EndCause.SPAWN_FAILED
        code = exit_code(session.stored.send(GET_JOB(job_id=job.job_id, include=["payload"])) if failed_start else job)
        if code:
            return code
    return 0
