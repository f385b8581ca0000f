"""`gc` and `db`: keeping the database in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from semtask.cli import render
from semtask.cli.arguments import now_ms
from semtask.cli.session import Command, CommandGroup, Session, pass_session

if TYPE_CHECKING:
    from semtask.maintenance import Changed

_GC_LIMIT_S = 630.0


@click.command(cls=Command)
@click.option("--vacuum", is_flag=True, help="Give all free space of the database back to the disk.")
@pass_session
def gc(session: Session, vacuum: bool) -> None:
    """Delete finished jobs and logs that are over their retention now, instead of by and by.

    What is kept: retention_days, max_finished_jobs and max_db_size_mb (`semtask config show`).
    """
    answer = session.stored.call("admin.maintenance.v1", {"force_vacuum": vacuum}, _GC_LIMIT_S)
    if session.json:
        session.emit({"schema": "maintained.v1", **answer})
    elif not session.quiet:
        jobs = answer["jobs_deleted"]
        session.line(
            f"deleted {jobs} job{'s' * (jobs != 1)} with {'its' if jobs == 1 else 'their'} logs; the database has "
            f"{render.size(answer['db_size_after'])}, before {render.size(answer['db_size_before'])}"
        )


@click.group(cls=CommandGroup)
def db() -> None:
    """Look at the database, or change its schema while no daemon runs."""


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
@click.option("--thorough", is_flag=True, help="Compare indexes with tables too; takes longer.")
@pass_session
def check(session: Session, thorough: bool) -> int:
    """Look for damage, also while the daemon runs. Exit code 1 if there is any."""
    from semtask import maintenance

    found = maintenance.damages(session.settings, thorough=thorough) or []
    if session.json:
        session.emit({"schema": "db_check.v1", "sound": not found, "damages": found})
    else:
        for line in found:
            session.line(render.printable(line))
        if not found and not session.quiet:
            session.line(f"{session.settings.database} is sound")
    return 1 if found else 0


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
