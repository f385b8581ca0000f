"""`gc` and `db`: keeping the database in order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from semtask.cli import render
from semtask.cli.arguments import now_ms
from semtask.cli.session import Command, CommandGroup, Session, pass_session
from semtask.client.messages import MAINTENANCE, json_of

if TYPE_CHECKING:
    from semtask.maintenance import Changed


@click.command(cls=Command)
@click.option("--vacuum", is_flag=True, help="Return all free space of the database to the disk.")
@pass_session
def gc(session: Session, vacuum: bool) -> None:
    """Delete finished jobs and logs that are over their retention now, without waiting for the next cleanup.

    What is kept: retention_days, max_finished_jobs and max_db_size_mb (`semtask config show`).
    """
    answer = session.stored.send(MAINTENANCE(force_vacuum=vacuum))
    if session.json:
        session.emit({"schema": "maintained.v1", **json_of(answer)})
    elif not session.quiet:
        jobs = answer.jobs_deleted
        session.line(
            f"deleted {jobs} job{'s' * (jobs != 1)} with {'its' if jobs == 1 else 'their'} logs; the database has "
            f"{render.size(answer.db_size_after)}, before {render.size(answer.db_size_before)}"
        )


@click.group(cls=CommandGroup)
def db() -> None:
    """Look at the database, back it up, and change or replace it while no daemon runs."""


@db.command(cls=Command)
@pass_session
def status(session: Session) -> None:
    """Show the version of the schema and what is applied. Exit code 4 if there is no database yet."""
    from semtask import maintenance

    settings = session.settings
    schema = maintenance.schema(settings)
    if session.json:
        session.emit(
            {
                "schema": "db_status.v1",
                "path": str(settings.database),
                "size_bytes": settings.database.stat().st_size,
                "sqlite": maintenance.sqlite_version(),
                "version": schema.version,
                "applied": [
                    {"version": version, "name": name, "applied_at": render.iso(at)}
                    for version, name, at in schema.applied
                ],
                "pending": [{"version": version, "name": name} for version, name in schema.pending],
            }
        )
        return
    if session.quiet:
        session.line(str(schema.version))
        return
    size = render.size(settings.database.stat().st_size)
    session.line(f"database: {settings.database}, {size}, SQLite {maintenance.sqlite_version()}")
    session.line(f"schema: version {schema.version}" + (", not up to date" if schema.pending else ", up to date"))
    for version, name, at in schema.applied:
        session.line(f"  {version:03} {name}, applied {render.iso(at)}")
    for version, name in schema.pending:
        session.line(
            f"  {version:03} {name}, not applied; `semtask db migrate` or the next start of the daemon does it"
        )


@db.command(cls=Command)
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--thorough", is_flag=True, help="Also compare indexes and counts with the tables; takes longer.")
@pass_session
def check(session: Session, file: Path | None, thorough: bool) -> int:
    """Look for damage, also while the daemon runs. Exit code 1 if there is any.

    With FILE it looks at that backup.
    """
    from semtask import maintenance

    path = session.settings.database if file is None else file.absolute()
    found = maintenance.damages(path, thorough=thorough) or []
    if session.json:
        session.emit({"schema": "db_check.v1", "sound": not found, "damages": found})
    else:
        for line in found:
            session.line(render.printable(line))
        if not found and not session.quiet:
            session.line(f"{path} is sound")
    return 1 if found else 0


@db.command(cls=Command)
@click.argument("file", metavar="FILE|-", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@pass_session
def backup(session: Session, file: str, force: bool) -> None:
    """Copy the database to FILE, also while the daemon works, or to stdout (-).

    It has the jobs as they are at one moment, with their results; logs and artifacts are files beside it.
    """
    from semtask import maintenance

    if file == "-":
        _backup_to_stdout(session)
        return
    target = Path(file).absolute()
    size = maintenance.backup(session.settings, target, progress=_progress(session, "copied"), replace=force)
    if session.json:
        session.emit({"schema": "db_backup.v1", "path": str(target), "size_bytes": size})
    elif session.quiet:
        session.line(str(target))
    else:
        session.line(f"{target} has the database as it was: {render.size(size)}")


def _backup_to_stdout(session: Session) -> None:
    """By a file: a copy is only known to be sound when it is whole."""
    import shutil
    import tempfile

    from semtask import maintenance

    if session.terminal:
        raise click.UsageError("a backup is no text: send it to a file or a pipe")
    with tempfile.TemporaryDirectory(prefix="semtask-backup-") as folder:
        target = Path(folder, "backup.db")
        maintenance.backup(session.settings, target, progress=_progress(session, "copied"))
        with target.open("rb") as made:
            shutil.copyfileobj(made, sys.stdout.buffer, 1 << 20)
        sys.stdout.buffer.flush()


@db.command(cls=Command)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--paused", is_flag=True, help="Pause all queues, so that you can see what waits before it runs.")
@pass_session
def restore(session: Session, file: Path, paused: bool) -> None:
    """Go back to a backup. The database that it replaces is kept beside it. Exit code 100 if the daemon runs.

    What has ended since the backup waits again, and runs again; what ran when it was made counts as interrupted.
    """
    from semtask import maintenance

    done = maintenance.restore(
        session.settings,
        file.absolute(),
        now=round(now_ms()),
        progress=_progress(session, "copied"),
        paused=paused,
    )
    kept = None if done.kept is None else str(done.kept)
    if session.json:
        session.emit(
            {
                "schema": "db_restored.v1",
                "path": str(session.settings.database),
                "kept": kept,
                "version": done.version,
                "running_jobs": done.running,
                "waiting_jobs": done.waiting,
            }
        )
        return
    session.notice(f"restored {file}" + (f"; the database as it was is in {kept}" if kept else ""))
    if done.waiting:
        how = "all queues are paused: look with `semtask ls`, then `semtask resume`" if paused else "run again"
        session.notice(f"{_jobs(done.waiting)} that waited when the backup was made: {how}")
    if done.running:
        session.notice(f"{_jobs(done.running)} that ran then: interrupted, and run again unless on_interrupt=fail")


def _jobs(count: int) -> str:
    return f"{count} job{'s' * (count != 1)}"


def _progress(session: Session, word: str) -> Callable[[int, int], None]:
    """Tells a person how far it is, a few times a second once it takes a second."""
    if session.quiet or session.json or not sys.stderr.isatty():
        return lambda _done, _of: None
    next_at = time.monotonic() + 1
    shown = False

    def tell(done: int, of: int) -> None:
        nonlocal next_at, shown
        if time.monotonic() < next_at and not (shown and done == of):
            return
        next_at = time.monotonic() + 0.25
        shown = True
        end = "\n" if done == of else ""
        sys.stderr.write(f"\rsemtask: {word} {render.size(done)} of {render.size(of)}\x1b[K{end}")
        sys.stderr.flush()

    return tell


@db.command(cls=Command)
@pass_session
def migrate(session: Session) -> None:
    """Bring the schema up to date, after a backup. The start of the daemon does it by itself.

    Exit code 100 if the daemon runs.
    """
    from semtask import maintenance

    _tell(session, maintenance.migrate(session.settings, now=round(now_ms())))


@db.command(cls=Command)
@click.option("--to", type=click.IntRange(0), required=True, metavar="VERSION", help="The version to go back to.")
@pass_session
def rollback(session: Session, to: int) -> None:
    """Go back to an earlier version of the schema, after a backup. What only newer versions can hold is lost.

    Exit code 100 if the daemon runs.
    """
    from semtask import maintenance

    _tell(session, maintenance.rollback(session.settings, to=to, now=round(now_ms())))


def _tell(session: Session, changed: Changed) -> None:
    if session.json:
        backup = None if changed.backup is None else str(changed.backup)
        session.emit({"schema": "db_changed.v1", "before": changed.before, "after": changed.after, "backup": backup})
    elif changed.before == changed.after:
        session.notice(f"the schema has version {changed.after} already; nothing was changed")
    else:
        kept = f"; the database as it was is in {changed.backup}" if changed.backup else ""
        session.notice(f"the schema went from version {changed.before} to {changed.after}{kept}")
