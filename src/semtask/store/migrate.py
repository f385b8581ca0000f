"""Versions of the schema: NNN_name.up.sql and NNN_name.down.sql, each applied in one transaction.

The version row is written in the same transaction, so a crash leaves the old schema or the new one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import apsw

from semtask.errors import StartupError
from semtask.store.codes import encode
from semtask.store.sql import folder

# "smtk": in the header of every database of ours, so that a foreign one is never touched.
APPLICATION_ID = 0x736D746B

_FILE = re.compile(r"(\d{3})_(\w+)\.(up|down)\.sql")
_CREATE_VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_versions (
    version     INTEGER PRIMARY KEY,
    name        TEXT    NOT NULL,
    applied_at  INTEGER NOT NULL,
    fingerprint TEXT    NOT NULL
) STRICT
"""


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    up: str
    down: str

    @property
    def fingerprint(self) -> str:
        """Of what it makes: without comments and the spaces of its layout."""
        statements = re.sub(r"--.*", "", self.up)
        return hashlib.sha256(" ".join(statements.split()).encode()).hexdigest()


@dataclass(frozen=True)
class Status:
    """`applied` maps a version to the time (epoch ms) it was applied; `pending` are those that are not."""

    applied: dict[int, int]
    pending: Sequence[Migration]


def available(source: Traversable | None = None) -> list[Migration]:
    """The migrations of this release, in order. Raises StartupError for a gap or a missing direction."""
    source = source or folder("sqlite", "migrations")
    texts: dict[tuple[int, str], dict[str, str]] = {}
    for entry in source.iterdir():
        if match := _FILE.fullmatch(entry.name):
            number, name, direction = match.groups()
            texts.setdefault((int(number), name), {})[direction] = encode(entry.read_text(encoding="utf-8"))
    found = []
    for (version, name), directions in sorted(texts.items()):
        for direction in ("up", "down"):
            if direction not in directions:
                raise StartupError(
                    f"migration {version:03}_{name} has no .{direction}.sql; this installation is broken"
                )
        found.append(Migration(version, name, directions["up"], directions["down"]))
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise StartupError("the migrations are not numbered 001, 002, ...; this installation is broken")
    return found


def status(db: apsw.Connection, migrations: Sequence[Migration] | None = None) -> Status:
    """What is applied and what is not.

    Raises StartupError if the database is newer than this release, or its tables are not those of our migrations.
    """
    migrations = available() if migrations is None else migrations
    applied = _applied(db)
    newest = len(migrations)
    if applied and max(applied) > newest:
        raise StartupError(
            f"the database has schema version {max(applied)}, this semtask knows versions up to {newest}: "
            "it was used by a newer semtask. Install that version again, or use another database"
        )
    _require_same_layout(db, [m for m in migrations if m.version in applied])
    return Status(applied, [m for m in migrations if m.version not in applied])


def migrate(
    db: apsw.Connection,
    path: Path,
    *,
    now: int,
    migrations: Sequence[Migration] | None = None,
    keep: bool = True,
) -> Path | None:
    """Apply what is pending. Returns the backup of the database as it was, None if it was empty or up to date.

    Without `keep` no backup is made: for a copy, whose original stays. Raises StartupError; the migration that failed
    has then changed nothing.
    """
    state = status(db, migrations)
    if not state.pending:
        return None
    backup = _backup(db, path, max(state.applied), now) if keep and state.applied else None
    for migration in state.pending:
        _run(db, migration, migration.up, backup)
        db.execute(
            "INSERT INTO schema_versions VALUES (?, ?, ?, ?)",
            (migration.version, migration.name, now, migration.fingerprint),
        )
        db.execute("COMMIT")
    return backup


def rollback(
    db: apsw.Connection, path: Path, *, to: int, now: int, migrations: Sequence[Migration] | None = None
) -> Path | None:
    """Undo the migrations above version `to`, newest first. Returns the backup made before, None if none was needed."""
    migrations = available() if migrations is None else migrations
    undo = [m for m in reversed(migrations) if m.version > to and m.version in status(db, migrations).applied]
    if not undo:
        return None
    backup = _backup(db, path, undo[0].version, now)
    for migration in undo:
        _run(db, migration, migration.down, backup)
        db.execute("DELETE FROM schema_versions WHERE version = ?", (migration.version,))
        db.execute("COMMIT")
    return backup


def _applied(db: apsw.Connection) -> dict[int, int]:
    if not db.table_exists("main", "schema_versions"):
        return {}
    rows: list[tuple[Any, ...]] = db.execute("SELECT version, applied_at FROM schema_versions").fetchall()
    return dict(rows)


def _require_same_layout(db: apsw.Connection, applied: Sequence[Migration]) -> None:
    """A migration that has changed since it was applied, before it was released, made other tables than it says now."""
    if not applied:
        return
    try:
        rows: list[tuple[Any, ...]] = db.execute("SELECT version, fingerprint FROM schema_versions").fetchall()
    except apsw.SQLError:
        rows = []  # from before there were fingerprints
    made = dict(rows)
    for migration in applied:
        if made.get(migration.version) != migration.fingerprint:
            raise StartupError(
                f"the database {db.filename} has an older layout: migration {migration.version:03}_{migration.name} has"
                " changed since it was made, and this semtask cannot read it. Move it away to start with an empty one,"
                " or run the version of semtask that made it"
            )


def _run(db: apsw.Connection, migration: Migration, script: str, backup: Path | None) -> None:
    """Run the script in a new transaction, which the caller commits."""
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(_CREATE_VERSIONS)
        db.execute(script).fetchall()  # to its end: a row would halt the script
    except apsw.Error as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        kept = f"; the backup is {backup}" if backup else ""
        raise StartupError(
            f"migration {migration.version:03}_{migration.name} failed and changed nothing: {error}{kept}"
        ) from error


def _backup(db: apsw.Connection, path: Path, version: int, now: int) -> Path:
    """A copy next to the database, made by SQLite: a file tool's open and close would drop its locks.

    It gets its name when it is whole and on the disk: what a power cut leaves of it must not pass for a backup.
    """
    target = path.with_name(f"{path.name}.v{version}.{now}.backup")
    partial = target.with_suffix(".partial")
    why = f"cannot back up the database to {target} before changing its schema"
    if target.exists():
        raise StartupError(f"{why}: there is such a file already")
    try:
        for left in path.parent.glob(f"{path.name}.v*.partial"):
            left.unlink()
        # Made beforehand, because VACUUM INTO would give the file the umask's permissions.
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StartupError(f"{why}: {error.strerror}") from error
    try:
        db.execute("VACUUM INTO ?", (str(partial),))
        _sync(partial)
        os.rename(partial, target)
        _sync(target.parent)
    except (OSError, apsw.Error) as error:
        partial.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        raise StartupError(f"{why}: {error}") from error
    return target


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
