"""The database file: opened or made, checked, and kept an eye on."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw

from semtask.errors import EXIT_DISK_FAILED, DatabaseError, StartupError
from semtask.host.backups import way_back
from semtask.store.migrate import APPLICATION_ID, migrate
from semtask.store.sql import query
from semtask.store.sqlite_faults import find_damage, is_damage
from semtask.store.sqlite_rows import fetch_value
from semtask.store.sqlite_writes import close_books
from semtask.store.writer import Tick, Unusable

log = logging.getLogger("semtask.store")

BUSY_TIMEOUT_MS = 2_000
# How long the writer may have to wait for a cut of the log that waits for a reader.
CUT_TIMEOUT_MS = 10
# A write-ahead log that grew under load is cut back to this when it starts again.
_WAL_KEEP_BYTES = 64 * 1024 * 1024
# Of the writer: subjects and keys come in any order, and so touch pages all over their indexes.
_CACHE_KIB = 16_000
_READER_CACHE_KIB = 2_000
# SQLite's own layer for files takes less than 128 KiB in one call.
_LOG_STEP = 64 * 1024
_STEPS_BETWEEN_LOOKS = 10_000
# About the 4 MiB after which SQLite itself moves the log into the database.
_CHECKPOINT_PAGES = 1_000


def damaged_at_start(path: Path, why: str) -> StartupError:
    """Nothing could be said about what ran and what waits: no daemon may start on it, however often it is tried."""
    return StartupError(f"the database {path} is damaged: {why}; {way_back(path)}", exit_code=EXIT_DISK_FAILED)


def require_sound_sqlite(version: str) -> None:
    """Raise StartupError for a SQLite that can damage a database in WAL mode (the WAL-reset bug)."""
    number = tuple(int(part) for part in version.split("."))[:3]
    if number >= (3, 51, 3) or (
        number[:2] in {(3, 50), (3, 44)} and number >= {50: (3, 50, 7), 44: (3, 44, 6)}[number[1]]
    ):
        return
    raise StartupError(
        f"this apsw carries SQLite {version}, which can damage a database (the WAL-reset bug). "
        "Install apsw 3.51.3 or newer: pip install --upgrade apsw"
    )


class SqliteFile:
    """One database file, opened for work by this daemon. Implements `writer.Database`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.daemon_epoch = 0
        self.distrusted = False
        self._identity: tuple[int, int] | None = None
        self._checkpointer: apsw.Connection | None = None
        # A checkpoint whose awaiter was cancelled goes on in its thread: closing waits for it.
        self._checkpointing = threading.Lock()
        self._closed = False

    def open(self, now: int) -> apsw.Connection:
        """The write connection, on a database with the newest schema and a new epoch. Raises StartupError."""
        require_sound_sqlite(apsw.sqlite_lib_version())
        with _startup_errors(self.path):
            self._create()
            db = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                self._require_ours(db)
                _prepare(db)
                # Only a database without tables takes this, and before it goes over to the write-ahead log.
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")
                db.execute("PRAGMA journal_mode = WAL").fetchall()
                db.execute("PRAGMA synchronous = FULL")
                db.set_wal_hook(self._committed)
                migrate(db, self.path, now=now)
                with db:
                    self.daemon_epoch = int(fetch_value(db, query("next_epoch")))
                self._identity = self._look()
            except BaseException:
                db.close()
                raise
        return db

    def _create(self) -> None:
        """Make the file ourselves: private from its first moment, whatever the umask, and with a lasting name."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _require_ours(self, db: apsw.Connection) -> None:
        """Before anything is written."""
        if db.pragma("application_id") != APPLICATION_ID and db.execute("SELECT 1 FROM sqlite_schema").fetchall():
            raise StartupError(f"{self.path} is a SQLite database of another program; choose another path")

    def connect(self) -> apsw.Connection:
        """Another connection for writing."""
        db = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        _prepare(db)
        db.set_wal_hook(self._committed)
        return db

    def _committed(self, db: apsw.Connection, name: str, pages: int) -> int:
        """What SQLite does by itself after a commit, without keeping to itself that it failed."""
        if pages >= _CHECKPOINT_PAGES:
            try:
                db.wal_checkpoint(name, mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.IOError:
                self.distrusted = True
            except apsw.Error as error:
                log.debug("the write-ahead log is moved later: %s", error)
        return apsw.SQLITE_OK

    def connect_reader(self) -> apsw.Connection:
        db = self.connect()
        db.execute("PRAGMA query_only = ON")
        db.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
        db.set_wal_hook(None)  # only the writer moves pages into the database
        return db

    def check(self, db: apsw.Connection) -> None:
        self.check_identity()
        epoch = fetch_value(db, query("read_epoch"))
        if epoch != self.daemon_epoch:
            raise Unusable(
                f"another daemon has taken over {self.path} (epoch {epoch}, this one is {self.daemon_epoch})"
            )

    def check_identity(self) -> None:
        """Raise DatabaseError if the path no longer leads to the file that is open: commits would go nowhere."""
        try:
            seen = self._look()
        except OSError as error:
            raise DatabaseError(f"the database {self.path} is gone ({error.strerror}); nothing is stored") from error
        if seen != self._identity:
            raise DatabaseError(
                f"{self.path} is no longer the file that this daemon has opened: it was replaced. "
                "Nothing is stored; restart the daemon to use the new file"
            )

    def probe(self, db: apsw.Connection) -> None:
        db.execute(query("probe_write"))

    def find_damage(self, db: apsw.Connection) -> str | None:
        found = find_damage(db)
        return found and f"{found}; {way_back(self.path)}"

    def look_through(self) -> str | None:
        """`find_damage` on a connection of its own, in any thread: others go on meanwhile. Raises DatabaseError."""
        try:
            with closing(self.connect_reader()) as db:
                db.set_progress_handler(lambda: self._closed, _STEPS_BETWEEN_LOOKS)
                found = self.find_damage(db)
        except apsw.Error as error:
            raise DatabaseError(f"the database cannot be looked through: {error}") from error
        return found and f"the database is damaged: {found}"

    def write_log_again(self) -> None:
        """Write every byte of the write-ahead log again, and sync it. Raises apsw.Error.

        When an fsync fails, the kernel gives up what it could not write, and says of it ever after that it is on the
        disk. Commits without fsync are among it; whatever was appended to them would be lost with them.
        """
        with self._checkpointing:
            wal = apsw.VFSFile("", f"{self.path}-wal", [apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE, 0])
            try:
                size = wal.xFileSize()
                for at in range(0, size, _LOG_STEP):
                    wal.xWrite(wal.xRead(min(_LOG_STEP, size - at), at), at)
                wal.xSync(apsw.SQLITE_SYNC_NORMAL)
            finally:
                wal.xClose()
        self.distrusted = False

    def close_books(self, tick: Tick) -> None:
        close_books(tick)

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database, then cut it if no reader needs it; in any thread.

        On a connection of its own: the writer goes on while the pages are moved, and waits only for the cut.
        """
        with self._checkpointing:
            if self._closed:
                return
            if self._checkpointer is None:
                self._checkpointer = self.connect()
                self._checkpointer.set_busy_timeout(CUT_TIMEOUT_MS)
                self._checkpointer.pragma("schema_version")  # before its first read it knows of no write-ahead log
            try:
                self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.BusyError:
                return  # a reader, or the writer in the middle of a tick; the next one cuts
            except apsw.Error as error:
                self.distrusted = self.distrusted or isinstance(error, apsw.IOError)
                raise DatabaseError(f"the write-ahead log cannot be moved into the database: {error}") from error

    def close(self) -> None:
        """May be called twice."""
        with self._checkpointing:
            self._closed = True
            if self._checkpointer is not None:
                self._checkpointer.close()

    def size_bytes(self) -> int:
        """The database and its write-ahead log."""
        total = 0
        for name in (str(self.path), f"{self.path}-wal"):
            try:
                total += os.stat(name).st_size
            except FileNotFoundError:
                continue
        return total

    def _look(self) -> tuple[int, int]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino


def _prepare(db: apsw.Connection) -> None:
    db.set_busy_timeout(BUSY_TIMEOUT_MS)
    # Plans do not hang on values here: without this SQLite prepares some statements again each time, ten times as slow.
    db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA mmap_size = 0").fetchall()
    db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_KEEP_BYTES}").fetchall()


@contextmanager
def _startup_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartupError(f"cannot open the database {path}: {error.strerror}") from error
    except apsw.NotADBError as error:
        raise StartupError(f"{path} is no SQLite database; choose another path or move the file away") from error
    except apsw.FullError as error:
        raise StartupError(f"cannot open the database {path}: the disk is full") from error
    except apsw.BusyError as error:
        raise StartupError(f"cannot open the database {path}: another process keeps it locked") from error
    except (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError) as error:
        raise StartupError(f"cannot open the database {path}: its folder or file is not writable ({error})") from error
    except apsw.Error as error:
        if is_damage(error):
            raise damaged_at_start(path, str(error)) from error
        raise StartupError(f"cannot open the database {path}: {error}") from error
    except ValueError as error:  # a row that every database of ours has is not there
        raise StartupError(f"the database {path} is damaged; move it away, or restore a backup of it") from error
