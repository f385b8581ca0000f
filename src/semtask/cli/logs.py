"""`logs`: the output of a job, or the daemon's own log."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import click

from semtask.cli.arguments import now_ms, past
from semtask.cli.complete import job_words
from semtask.cli.follow import Sink, streams_to, writes_apart
from semtask.cli.ids import job_ids
from semtask.cli.render import short
from semtask.cli.session import Command, Session, pass_session
from semtask.client.logs import LogReader, Piece
from semtask.client.logs import follow as followed
from semtask.client.messages import GET_JOB


@click.command(cls=Command)
@click.argument("job", metavar="ID|--daemon", required=False, shell_complete=job_words)
@click.option("--daemon", "of_daemon", is_flag=True, help="Show the daemon's own log; the daemon need not run.")
@click.option("-f", "--follow", is_flag=True, help="Follow the output until the job has ended, over retries.")
@click.option("-n", "--lines", type=click.IntRange(0, 1_000_000), help="Begin with the last N lines.")
@click.option(
    "--since", type=past, metavar="DURATION|TIME", help="With --daemon: only what was written in this time, like 1h."
)
@click.option("--stdout", "only", flag_value="stdout", help="Only what it wrote to stdout.")
@click.option("--stderr", "only", flag_value="stderr", help="Only what it wrote to stderr; printed to stdout.")
@click.option("--attempt", type=click.IntRange(1), help="The number of the attempt, from 1. Default: the newest.")
@pass_session
def logs(
    session: Session,
    /,
    job: str | None,
    *,
    of_daemon: bool,
    follow: bool,
    lines: int | None,
    since: int | None,
    only: str | None,
    attempt: int | None,
) -> None:
    """Print the output of a job, byte for byte; its stderr goes to stderr. ID: an id, the end of one, or `last`.

    Ctrl-C ends -f and not the job.
    """
    if of_daemon:
        if job is not None or only is not None or attempt is not None:
            raise click.UsageError("--daemon goes with -f, -n and --since only")
        from semtask.cli.daemon_log import print_daemon_log

        print_daemon_log(session, follow=follow, last=lines, since=since)
        return
    if job is None:
        raise click.UsageError("name a job, or give --daemon")
    if since is not None:
        raise click.UsageError(
            "--since works with --daemon only: the output of a job carries no times; -n gives its last lines"
        )
    _print_output(session, job_ids(session, [job])[0], follow=follow, lines=lines, only=only, attempt=attempt)


def _print_output(
    session: Session, job_id: str, *, follow: bool, lines: int | None, only: str | None, attempt: int | None
) -> None:
    found = session.stored.send(GET_JOB(job_id=job_id, include=["payload"]))
    if not found.claim_no and attempt is None:
        session.notice(
            f"{short(job_id)} has written nothing, it was never started; `semtask show {short(job_id)}` says why"
        )
    streams = {only: 1} if only else streams_to(apart=writes_apart(found))
    sink = Sink(job_id, emit=session.emit if session.json else None, notice=session.notice)

    def copy(stream: str, fd: int) -> None:
        with session.connect(start=False) as transport:
            reader = LogReader(job_id, stream, now_ms, follow=follow, attempt=attempt)
            for item in followed(reader.read(lines), transport.send):
                if isinstance(item, Piece):
                    sink.write(stream, fd, item)

    if follow and len(streams) > 1:
        _at_once(copy, streams)
    else:
        for stream, fd in streams.items():
            copy(stream, fd)


def _at_once(copy: Callable[[str, int], Any], streams: dict[str, int]) -> None:
    """Copy all streams, each in a thread; the first error is ours."""
    from queue import SimpleQueue

    ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def guarded(stream: str, fd: int) -> None:
        try:
            copy(stream, fd)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            ends.put(error)
        else:
            ends.put(None)

    for stream, fd in streams.items():
        threading.Thread(target=guarded, args=(stream, fd), daemon=True).start()
    for _ in streams:
        if (error := ends.get()) is not None:
            raise error
