"""What `doctor` finds about the database: SQLite itself, the file, and its write-ahead log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from semtask import maintenance
from semtask.cli import render
from semtask.cli.doctor.patient import Finding, Patient, fail, ok, warn

_MIB = 1 << 20
_LONG_WAL = 256 * _MIB
_QUICK_CHECK_S = 10.0


def sqlite(_patient: Patient) -> Iterator[Finding]:
    yield ok(f"version {maintenance.sqlite_version()}, without the WAL-reset bug")


def database(patient: Patient) -> Iterator[Finding]:
    path = patient.settings.database
    if not path.exists():
        yield ok(f"{path} is not there yet")
        return
    schema = maintenance.schema(patient.settings)
    if schema.pending:
        yield warn(
            f"the schema has version {schema.version}, this release has {schema.pending[-1][0]}",
            "`semtask down`, then `semtask up` brings it up to date",
        )
    found = maintenance.damages(patient.settings.database, limit_s=_QUICK_CHECK_S)
    if found is None:
        yield warn(f"is too large to be checked within {_QUICK_CHECK_S:g} s", "semtask db check")
    elif found:
        yield fail(
            f"is damaged: {found[0]}" + (f", and {len(found) - 1} more" if len(found) > 1 else ""),
            f"`semtask down`, keep a copy of {path}, and see `semtask db check`",
        )
    else:
        yield ok(f"sound, {render.size(path.stat().st_size)}, schema version {schema.version}")


def write_ahead_log(patient: Patient) -> Iterator[Finding]:
    wal = Path(f"{patient.settings.database}-wal")
    size = wal.stat().st_size if wal.exists() else 0
    if size > _LONG_WAL:
        yield warn(
            f"has {render.size(size)}: it cannot be emptied while something reads the database",
            f"look for other programs that have {patient.settings.database} open",
        )
    else:
        yield ok(render.size(size))
