"""The database of a home, without a daemon: its schema, and whether it is sound.

Looking is allowed at any time, over a connection that cannot write. Changing needs the home for itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from semtask.config import Settings
from semtask.errors import StartupError
from semtask.host.ownership import owned_folders
from semtask.store import migrate as migrations
from semtask.store.migrate import APPLICATION_ID
from semtask.store.sqlite_file import BUSY_TIMEOUT_MS, require_sound_sqlite

NO_DATABASE = 4
_CHECK_EVERY = 10_000  # steps of SQLite's virtual machine between two looks at the clock


@dataclass(frozen=True)
class Schema:
    """`applied` is (version, name, epoch ms) of each migration in the database, `pending` those that are not there."""

    applied: list[tuple[int, str, int]]
    pending: list[tuple[int, str]]

    @property
    def version(self) -> int:
        return max((version for version, _, _ in self.applied), default=0)


@dataclass(frozen=True)
class Changed:
    """The schema before and after, and where the database was copied to first; None if nothing was changed."""

    before: int
    after: int
    backup: Path | None


def sqlite_version() -> str:
    """Raises StartupError for a SQLite that can damage a database."""
    version = apsw.sqlite_lib_version()
    require_sound_sqlite(version)
    return version


def schema(settings: Settings) -> Schema:
    """What of the schema is applied. Raises StartupError, also for a database that is newer than this release."""
    with _opened(settings.database, apsw.SQLITE_OPEN_READONLY) as db:
        return _schema(db)


def migrate(settings: Settings, *, now: int) -> Changed:
    """Bring the schema up to date, as the next start of the daemon would. Raises StartupError."""
    with _owned(settings) as db:
        before = _schema(db).version
        backup = migrations.migrate(db, settings.database, now=now)
        return Changed(before, _schema(db).version, backup)


def rollback(settings: Settings, *, to: int, now: int) -> Changed:
    """Undo the migrations above version `to`, after a backup. Raises StartupError."""
    with _owned(settings) as db:
        before = _schema(db).version
        backup = migrations.rollback(db, settings.database, to=to, now=now)
        return Changed(before, _schema(db).version, backup)


def damages(settings: Settings, *, thorough: bool = False, limit_s: float | None = None) -> list[str] | None:
    """What SQLite finds wrong with the database; None if it did not get through it within `limit_s`.

    `thorough` compares the indexes with the tables too, which takes longer. Raises StartupError.
    """
    with _opened(settings.database, apsw.SQLITE_OPEN_READONLY) as db:
        if limit_s is not None:
            end = time.monotonic() + limit_s
            db.set_progress_handler(lambda: time.monotonic() > end, _CHECK_EVERY)
        found: list[str] = []
        try:
            for (line,) in db.execute("PRAGMA integrity_check" if thorough else "PRAGMA quick_check"):
                found += [] if line == "ok" else str(line).splitlines()
            found += [f"a row of {row[0]} refers to a row of {row[2]} that is not there" for row in _orphans(db)]
        except apsw.InterruptError:
            return None
        except apsw.CorruptError as error:  # too broken to be looked through
            found.append(str(error))
        return found


def _orphans(db: apsw.Connection) -> Iterator[tuple[str, int, str, int]]:
    yield from db.execute("PRAGMA foreign_key_check")


def _schema(db: apsw.Connection) -> Schema:
    known = migrations.available()
    state = migrations.status(db, known)
    names = {m.version: m.name for m in known}
    return Schema(
        applied=[(version, names[version], at) for version, at in sorted(state.applied.items())],
        pending=[(m.version, m.name) for m in state.pending],
    )


@contextmanager
def _owned(settings: Settings) -> Iterator[apsw.Connection]:
    _require_database(settings.database)
    with owned_folders(settings), _opened(settings.database, apsw.SQLITE_OPEN_READWRITE) as db:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")
        yield db


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[apsw.Connection]:
    """The database of ours at `path`; nothing is made."""
    sqlite_version()
    _require_database(path)
    try:
        with closing(apsw.Connection(str(path), flags=flags)) as db:
            db.set_busy_timeout(BUSY_TIMEOUT_MS)
            if db.pragma("application_id") != APPLICATION_ID:
                raise StartupError(f"{path} is no database of semtask")
            yield db
    except apsw.Error as error:
        raise StartupError(f"cannot use the database {path}: {error}") from error


def _require_database(path: Path) -> None:
    if not path.exists():
        raise StartupError(
            f"there is no database {path} yet; the first start of the daemon makes it", exit_code=NO_DATABASE
        )
