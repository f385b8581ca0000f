"""`ls`, `show` and `wait`: they change nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from semtask.cli import render
from semtask.cli.arguments import duration, now_ms, past
from semtask.cli.complete import job_words, queue_names, tag_names
from semtask.cli.exit_codes import exit_code
from semtask.cli.failure import TIMED_OUT
from semtask.cli.follow import patient_call
from semtask.cli.ids import job_ids
from semtask.cli.session import Command, Session, pass_session
from semtask.model.state import FINAL, State

_PAGE = 200
_MAX_WAIT_MS = 60_000
_MAX_IDS = 1000  # of one dev.wait
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
@click.option("--since", type=past, metavar="DURATION|TIME", help="Only enqueued since: 1h ago, or 18:00.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="How many at most.")
@click.option("--cursor", help="Go on where the last list ended.")
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


def _jobs(
    session: Session, wanted: dict[str, Any], limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """At most `limit` jobs, and where the list goes on."""
    jobs: list[dict[str, Any]] = []
    while limit > len(jobs):
        page = {"filter": wanted, "limit": min(limit - len(jobs), _PAGE), **({"cursor": cursor} if cursor else {})}
        answer = patient_call(session.stored, "dev.query_jobs.v1", page)
        jobs += answer["items"]
        cursor = answer["next_cursor"]
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


def _job_lines(session: Session, jobs: list[dict[str, Any]]) -> list[str]:
    import json

    if session.json:
        return [json.dumps(render.job_json(job), separators=(",", ":")) for job in jobs]
    if session.quiet:
        return [job["job_id"] for job in jobs]
    if not session.terminal:
        return ["\t".join(_plain_row(job)) for job in jobs]
    now = now_ms()
    rows = [
        [
            render.short(job["job_id"]),
            render.paint(job["state"], job["state"], colored=session.colored),
            job["queue"],
            render.ago(job["run_at"] if job["state"] == "SCHEDULED" else job["created_at"], now),
            render.took(job, now),
            render.outcome(job),
            render.name_of(job),
        ]
        for job in jobs
    ]
    return render.table(["ID", "STATE", "QUEUE", "WHEN", "TOOK", "WHY", "COMMAND"], rows, right=frozenset({4}))


def _plain_row(job: dict[str, Any]) -> list[str]:
    return [
        job["job_id"],
        job["state"],
        job["queue"],
        render.iso(job["created_at"]),
        render.outcome(job),
        render.name_of(job),
    ]


# --- show ------------------------------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("job", metavar="ID", shell_complete=job_words)
@click.option("--payload", "with_payload", is_flag=True, help="The arguments and environment too.")
@pass_session
def show(session: Session, /, job: str, with_payload: bool) -> None:
    """Show one job: its times, attempts and errors.

    ID: an id, the end of one, `last`, `last:2`, or `@subject`.
    """
    for job_id in job_ids(session, [job]):
        include = ["attempts", "payload"] if with_payload else ["attempts"]
        found = session.call("dev.get_job.v1", {"job_id": job_id, "include": include})
        if session.json:
            session.emit(render.job_json(found))
        elif session.quiet:
            session.line(found["job_id"])
        else:
            for line in _details(session, found):
                session.line(line)


def _details(session: Session, job: dict[str, Any]) -> list[str]:
    now = now_ms()
    state = render.paint(job["state"], job["state"], colored=session.colored)
    why = render.outcome(job)
    facts: list[tuple[str, Any]] = [
        ("job", job["job_id"]),
        ("state", f"{state} ({why})" if why else state),
        ("waits", render.why_waiting(job, now)),
        ("error", job.get("error")),
        ("attempts", render.attempt_of(job) if job["max_attempts"] > 1 or job["attempts"] > 1 else None),
        ("budgets used", _budgets(job)),
        ("command" if job.get("command") else "task", job.get("command") or job["job_type"]),
        ("name", job["job_type"] if job.get("command") else None),
        ("queue", f"{job['queue']}, priority {job['priority']}"),
        ("subject", f"{job['subject_key']}, generation {job['generation']}" if job.get("subject_key") else None),
        ("superseded by", job.get("superseded_by")),
        ("retry of", job.get("retry_of")),
        ("tag", job.get("tag")),
        ("group", job.get("chain_group_id")),
        ("created", _when(job["created_at"], now)),
        ("due", _when(job.get("run_at"), now)),
        ("started", _when(job.get("started_at"), now)),
        ("finished", _when(job.get("finished_at"), now)),
        ("took", None if (took := render.took(job, now)) == "-" else took),
        ("deadline", _when(job.get("deadline"), now)),
        ("timeout", render.duration(job["timeout_ms"]) if job.get("timeout_ms") else None),
        ("ttl", render.duration(job["ttl_ms"]) if job.get("ttl_ms") else None),
        ("stopping", job.get("stop_reason") if job["state"] == "RUNNING" else None),
        ("pid", job.get("pid") if job["state"] == "RUNNING" else None),
        ("on interrupt", job["on_interrupt"]),
        ("log", job.get("log_path")),
    ]
    width = max(len(name) for name, _ in facts)
    lines = []
    for name, value in facts:
        if value is not None:
            text = str(value) if name == "state" else render.printable(str(value))
            lines.append(f"{name:<{width}}  {text}")
    lines += [
        f"{'attempt ' + str(attempt['claim_no']):<{width}}  {_attempt(attempt, now)}"
        for attempt in job.get("attempts_list") or []
    ]
    if job.get("payload") is not None:
        import json

        lines.append(json.dumps(job["payload"], indent=2))
    return lines


def _budgets(job: dict[str, Any]) -> str | None:
    """What was counted against the job; None if nothing was."""
    counts = [(job["failures"], "failure"), (job["crashes"], "crash"), (job["interruptions"], "interruption")]
    plural = {"crash": "crashes"}
    used = [f"{n} {word if n == 1 else plural.get(word, word + 's')}" for n, word in counts if n]
    return ", ".join(used) or None


def _when(epoch_ms: int | None, now: float) -> str | None:
    return None if epoch_ms is None else f"{render.iso(epoch_ms)} ({render.ago(epoch_ms, now)})"


def _attempt(attempt: dict[str, Any], now: float) -> str:
    if attempt.get("finished_at") is None:
        return f"running for {render.took(attempt, now)}, pid {attempt.get('pid')}"
    how = attempt["end_cause"]
    if attempt.get("exit_code") is not None:
        how += f", exit code {attempt['exit_code']}"
    if attempt.get("signal") is not None:
        how += f", signal {attempt['signal']}"
    return f"{how} after {render.took(attempt, now)}"


# --- wait ------------------------------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("jobs", metavar="ID...", nargs=-1, required=True, shell_complete=job_words)
@click.option("--any/--all", "any_of", default=False, help="Until one has ended, or until all have (default).")
@click.option("--timeout", "timeout_ms", type=duration, metavar="DURATION", help="At most so long; then exit code 124.")
@click.option("--exit-status", is_flag=True, help="Exit as the first job that did not succeed.")
@pass_session
def wait(session: Session, /, *, jobs: tuple[str, ...], any_of: bool, timeout_ms: int | None, exit_status: bool) -> int:
    """Wait for jobs to end. ID: an id, the end of one, `last`, `last:2`, `@subject`, or `-` for ids on stdin."""
    ids = job_ids(session, jobs)
    if any_of and len(ids) > _MAX_IDS:
        raise click.UsageError(f"{len(ids)} jobs are too many for --any; at most {_MAX_IDS}")
    deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
    found: list[dict[str, Any]] = []
    timed_out = False
    for begin in range(0, len(ids), _MAX_IDS):
        answer = _wait(session, ids[begin : begin + _MAX_IDS], "any" if any_of else "all", deadline)
        found += answer["jobs"]
        timed_out = timed_out or answer["timed_out"]
    ended = [job for job in found if job["state"] in FINAL]
    for job in ended:
        _tell_end(session, job)
    if timed_out:
        session.notice(f"{len(ids) - len(ended)} of {len(ids)} jobs have not ended yet")
        return TIMED_OUT
    return _exit_status(session, ended) if exit_status else 0


def _wait(session: Session, ids: list[str], mode: str, deadline: float | None) -> Any:
    """The answer of dev.wait, at the end of the waiting; `deadline` is monotonic."""
    while True:
        left = _MAX_WAIT_MS if deadline is None else max(0, round((deadline - time.monotonic()) * 1000))
        params = {"job_ids": ids, "mode": mode, "timeout_ms": min(left, _MAX_WAIT_MS)}
        answer = patient_call(session.stored, "dev.wait.v1", params, 30 + _MAX_WAIT_MS / 1000)
        if not answer["timed_out"] or (deadline is not None and left <= _MAX_WAIT_MS):
            return answer


def _tell_end(session: Session, job: dict[str, Any]) -> None:
    if session.json:
        session.emit(render.job_json(job))
    elif session.quiet:
        session.line(job["job_id"])
    else:
        session.line(render.sentence(job))


def _exit_status(session: Session, ended: list[dict[str, Any]]) -> int:
    for job in ended:
        params = {"job_id": job["job_id"], "include": ["payload"]}
        code = exit_code(session.call("dev.get_job.v1", params) if job["end_cause"] == "spawn_failed" else job)
        if code:
            return code
    return 0
