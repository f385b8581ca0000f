"""The database of a home, without a daemon: its schema, whether it is sound, backups and the way back to one.

Looking and copying are allowed at any time, over a connection that cannot write. Changing needs the home for itself.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import apsw

from semtask.config.settings import Settings
from semtask.errors import StartupError
from semtask.executors.abandon import StillThere, abandon
from semtask.executors.attempt_files import AttemptFiles
from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.output import LogFiles
from semtask.host import backups
from semtask.host.ownership import owned_folders
from semtask.store import migrate as migrations
from semtask.store import sqlite_copy
from semtask.store.migrate import APPLICATION_ID
from semtask.store.sqlite_copy import HighMarks, Progress
from semtask.store.sqlite_file import BUSY_TIMEOUT_MS, require_sound_sqlite

NO_DATABASE = 4
_CHECK_EVERY = 10_000  # steps of SQLite's virtual machine between two looks at the clock
# A shim gives its command 2 s when the daemon is gone, then kills.
_ENDING_S = 15.0
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


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


@dataclass(frozen=True)
class Restored:
    """`kept`: where the database that was replaced is, if there was one. `running` and `waiting` are the jobs of the
    restored one that the next daemon goes on with: what ran is judged as interrupted.
    """

    kept: Path | None
    version: int
    running: int
    waiting: int


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


def damages(path: Path, *, thorough: bool = False, limit_s: float | None = None) -> list[str] | None:
    """What SQLite finds wrong with a database; None if it did not get through it within `limit_s`.

    `thorough` compares the indexes with the tables too, and what is counted with what there is, which takes longer.
    Raises StartupError, with the exit code NO_DATABASE if there is none.
    """
    with _opened(path, apsw.SQLITE_OPEN_READONLY) as db:
        if limit_s is not None:
            end = time.monotonic() + limit_s
            db.set_progress_handler(lambda: time.monotonic() > end, _CHECK_EVERY)
        try:
            return _damages(db, thorough=thorough)
        except apsw.InterruptError:
            return None


def _damages(db: apsw.Connection, *, thorough: bool) -> list[str]:
    found: list[str] = []
    try:
        for (line,) in db.execute("PRAGMA integrity_check" if thorough else "PRAGMA quick_check"):
            found += [] if line == "ok" else str(line).splitlines()
        found += [f"a row of {row[0]} refers to a row of {row[2]} that is not there" for row in _orphans(db)]
        if thorough and not found and not migrations.status(db).pending:
            found += sqlite_copy.miscounted(db)
    except apsw.CorruptError as error:  # too broken to be looked through
        found.append(str(error))
    return found


def backup(settings: Settings, target: Path, *, progress: Progress, replace: bool = False) -> int:
    """Copy the database, as it is at this moment, to `target`: complete and synced, or nothing; its size in bytes.

    The daemon may run; the copy is checked. A file that is there is only replaced with `replace`. Raises StartupError.
    """
    _require_free(settings.database, target, replace=replace)
    draft = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        with _opened(settings.database, apsw.SQLITE_OPEN_READONLY) as db:
            _copy(db, draft, progress)
        if found := damages(draft):
            raise StartupError(f"no backup was made, as the database is damaged: {found[0]}; see `semtask db check`")
        _put(draft, target, replace=replace)
        with suppress(OSError):  # it is only for a hint
            backups.remember(settings.database, target)
        return target.stat().st_size
    except (OSError, apsw.Error) as error:
        raise StartupError(f"cannot write the backup {target}: {_why(error)}") from error
    finally:
        draft.unlink(missing_ok=True)


def restore(settings: Settings, source: Path, *, now: int, progress: Progress, paused: bool = False) -> Restored:
    """Put a backup in the place of the database, which is kept beside it. `paused` pauses all its queues.

    The backup is copied, checked and brought up to the schema of this release first; until then nothing is changed,
    and a crash leaves the one database or the other. Raises StartupError.
    """
    database = settings.database
    if not source.is_file():
        raise StartupError(f"there is no backup {source}", exit_code=NO_DATABASE)
    if database.exists() and database.samefile(source):
        raise StartupError(f"{source} is the database itself; nothing was changed")
    if found := damages(source):
        raise StartupError(f"{source} is damaged, nothing was changed: {found[0]}")
    with owned_folders(settings):
        draft = database.with_name(f".{database.name}.restored.{now}")
        try:
            with _opened(source, apsw.SQLITE_OPEN_READONLY) as db:
                migrations.status(db)
                _copy(db, draft, progress)
            marks, nonces = _known(database)
            restored = _prepare(settings, draft, now=now, marks=marks, paused=paused)
            _give_up_former(settings, nonces)
            kept = _replace(database, draft, now)
        except (OSError, apsw.Error) as error:
            raise StartupError(f"cannot restore {source}: {_why(error)}") from error
        finally:
            draft.unlink(missing_ok=True)
    version, running, waiting = restored
    return Restored(kept, version, running, waiting)


def _copy(db: apsw.Connection, draft: Path, progress: Progress) -> None:
    try:
        sqlite_copy.copy(db, draft, progress)
    except (OSError, apsw.Error) as error:
        raise StartupError(f"cannot copy the database to {draft.parent}: {_why(error)}") from error


def _prepare(
    settings: Settings, draft: Path, *, now: int, marks: HighMarks | None, paused: bool
) -> tuple[int, int, int]:
    with _opened(draft, apsw.SQLITE_OPEN_READWRITE) as db:
        migrations.migrate(db, draft, now=now, keep=False)
        moved = not settings.database.exists()
        sqlite_copy.adopt(db, taken=_taken(settings), marks=marks, paused=paused, moved=moved)
        running, waiting = sqlite_copy.unfinished(db)
        version = _schema(db).version
    sqlite_copy.sync(draft)
    return version, running, waiting


def _taken(settings: Settings) -> dict[str, int]:
    """The highest claim_no of each job that has a log or a folder."""
    logs = LogFiles(settings.logs_dir / "jobs")
    files = AttemptFiles(AttemptsDir(settings.attempts_dir), logs, str(settings.artifacts_dir))
    taken: dict[str, int] = {}
    for keys in (files.folders(), *map(files.logs_in, files.log_folders())):
        for job_id, claim_no in keys:
            taken[job_id] = max(taken.get(job_id, 0), claim_no)
    return taken


def _known(database: Path) -> tuple[HighMarks | None, list[str]]:
    """What the database that is replaced has given out, and by what its running attempts are known.

    It may be too damaged to say, and then it is replaced for that reason. Its write-ahead log is moved into it.
    """
    if not database.exists():
        return None, []
    with suppress(StartupError), _opened(database, apsw.SQLITE_OPEN_READWRITE) as db:
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        return sqlite_copy.high_marks(db), sqlite_copy.nonces_of_running(db)
    return None, []


def _give_up_former(settings: Settings, nonces: list[str]) -> None:
    try:
        abandon(AttemptsDir(settings.attempts_dir), nonces, patience_s=_ENDING_S)
    except StillThere as still:
        raise StartupError(
            f"processes of the former daemon are still being stopped ({still.what}); nothing was restored, try again"
        ) from still


def _replace(database: Path, draft: Path, now: int) -> Path | None:
    """At every moment there is one of the two under the name, and never one with the log of the other."""
    kept: Path | None = None
    if database.exists():
        kept = database.with_name(f"{database.name}.before-restore-{now}")
        os.link(database, kept)
    for suffix in ("-wal", "-shm"):  # only of a database that could not be opened
        with suppress(FileNotFoundError):
            os.rename(f"{database}{suffix}", f"{kept or database}{suffix}{'' if kept else '.lost'}")
    os.rename(draft, database)
    sqlite_copy.sync(database.parent)
    return kept


def _require_free(database: Path, target: Path, *, replace: bool) -> None:
    if not target.parent.is_dir():
        raise StartupError(f"there is no folder {target.parent} for the backup")
    if target.exists() and database.exists() and target.samefile(database):
        raise StartupError(f"{target} is the database itself; name another file")
    if os.path.lexists(target) and not (replace and target.is_file()):
        how = "" if replace else "; --force replaces it"
        raise StartupError(f"{target} is there already{how}")
    for suffix in ("-wal", "-journal"):
        if os.path.lexists(f"{target}{suffix}"):
            raise StartupError(
                f"{target}{suffix} is there, which SQLite would take for a part of the backup; remove it"
            )


def _put(draft: Path, target: Path, *, replace: bool) -> None:
    """Give it its name in one step, when it is complete."""
    if replace:
        os.replace(draft, target)
    else:
        try:
            os.link(draft, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.rename(draft, target)  # of a file system without links, as on a stick
    sqlite_copy.sync(target.parent)


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


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
