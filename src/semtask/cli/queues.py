"""`queues`, `pause` and `resume`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from semtask.cli import render
from semtask.cli.complete import queue_names
from semtask.cli.session import Command, CommandGroup, Session, pass_session
from semtask.client.messages import (
    CONFIGURE_QUEUE,
    LIST_QUEUES,
    PAUSE_QUEUE,
    RESUME_QUEUE,
    json_of,
)
from semtask.model.sandbox import SandboxLevel

if TYPE_CHECKING:
    from semtask.protocol.queues import QueueView

_COUNTS = ("scheduled", "queued", "running", "done", "failed")


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.pass_context
@pass_session
def queues(session: Session, ctx: click.Context) -> None:
    """List queues with their counts, or set their limits."""
    if ctx.invoked_subcommand is not None:
        return
    listed = session.stored.send(LIST_QUEUES()).queues
    if session.json:
        for queue in listed:
            session.emit(_queue_json(queue))
    elif session.quiet:
        for queue in listed:
            session.line(queue.name)
    else:
        for line in queue_lines(session, listed):
            session.line(line)


@queues.command(name="set", cls=Command)
@click.argument("queue", shell_complete=queue_names)
@click.option(
    "--concurrency",
    metavar="N|default",
    help="How many of its jobs may run simultaneously; `default`: the setting queue_concurrency.",
)
@click.option(
    "--class",
    "class_",
    type=click.Choice(["interactive", "normal", "background"]),
    help="`background` waits while the machine is busy; the others never do.",
)
@click.option(
    "--sandbox",
    type=click.Choice([level.value for level in SandboxLevel]),
    help="The weakest sandbox for its commands; with one, it takes no tasks.",
)
@pass_session
def set_limits(session: Session, queue: str, concurrency: str | None, class_: str | None, sandbox: str | None) -> None:
    """Set how many jobs of a queue may run simultaneously, whether it waits for an idle machine, and the least sandbox
    of its commands.
    """
    if concurrency is None and class_ is None and sandbox is None:
        raise click.UsageError("give --concurrency, --class or --sandbox")
    wanted: dict[str, Any] = {"queue": queue}
    if concurrency is not None:
        wanted["concurrency"] = _limit(concurrency)
    if class_ is not None:
        wanted["class"] = class_
    if sandbox is not None:
        wanted["sandbox"] = sandbox
    answer = session.daemon.send(CONFIGURE_QUEUE(**wanted))
    floor = "" if answer.sandbox == "none" else f", no command without the sandbox {answer.sandbox}"
    _tell(session, answer, f"runs up to {_jobs(answer.concurrency)} at a time, class {answer.class_}{floor}")


def _jobs(count: int) -> str:
    return f"{count} job{'s' * (count != 1)}"


def _limit(word: str) -> int | None:
    if word == "default":
        return None
    if not (word.isascii() and word.isdigit()):
        raise click.BadParameter(f"{word!r} is neither a whole number nor `default`", param_hint="--concurrency")
    return int(word)


@click.command(cls=Command)
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True, shell_complete=queue_names)
@pass_session
def pause(session: Session, names: tuple[str, ...]) -> None:
    """Start no more jobs of queues. They go on accepting jobs, and what runs goes on."""
    for name in names:
        _tell(session, session.daemon.send(PAUSE_QUEUE(queue=name)), "is paused")


@click.command(cls=Command)
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True, shell_complete=queue_names)
@pass_session
def resume(session: Session, names: tuple[str, ...]) -> None:
    """Start jobs of paused queues again."""
    for name in names:
        _tell(session, session.daemon.send(RESUME_QUEUE(queue=name)), "is running")


def _tell(session: Session, queue: QueueView, what: str) -> None:
    if session.json:
        session.emit(_queue_json(queue))
    else:
        session.notice(f"queue {queue.name} {what}")


def _queue_json(queue: QueueView) -> dict[str, Any]:
    return {"schema": "queue.v1", **json_of(queue)}


def queue_lines(session: Session, listed: list[QueueView]) -> list[str]:
    """A table on a terminal, else tab-separated values. The table shows sandboxes if a queue asks for one."""
    rows = [
        [
            q.name,
            *(str(getattr(q, count)) for count in _COUNTS),
            str(q.concurrency),
            q.class_,
            "paused" if q.paused else "",
            "" if q.sandbox == "none" else q.sandbox,
        ]
        for q in listed
    ]
    if not session.terminal:
        return ["\t".join(row) for row in rows]
    header = ["QUEUE", *(count.upper() for count in _COUNTS), "LIMIT", "CLASS", "STATE", "SANDBOX"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return render.table(header, rows, right=frozenset(range(1, 7)))
