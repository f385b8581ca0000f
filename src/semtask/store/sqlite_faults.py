"""What errors of SQLite say about the disk, and what an integrity check of a database finds."""

from __future__ import annotations

import re
from typing import Any

import apsw

from semtask.errors import DatabaseError
from semtask.model.disk import DiskState, Trouble

# The database cannot write now, but may again: no space, an I/O error, a lock, no descriptor, no memory.
UNAVAILABLE = (
    apsw.FullError,
    apsw.IOError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.NoMemError,
)

_SHOWN = 3
_READING = {
    apsw.SQLITE_IOERR_READ,
    apsw.SQLITE_IOERR_SHORT_READ,
    apsw.SQLITE_IOERR_CORRUPTFS,
    apsw.SQLITE_IOERR_DATA,
}


class DamageMet(DatabaseError):
    """A part of the database that was asked for cannot be read."""


def is_damage(error: BaseException) -> bool:
    """Whether a page of the database cannot be read, or holds nonsense: others may be sound."""
    return isinstance(error, apsw.CorruptError | apsw.NotADBError) or (
        isinstance(error, apsw.IOError) and getattr(error, "extendedresult", None) in _READING
    )


def explain(error: apsw.Error) -> Trouble:
    """Why the database cannot be written now."""
    match error:
        case apsw.FullError():
            return Trouble(DiskState.FULL, "the disk with the database is full; free some space")
        case apsw.BusyError() | apsw.LockedError():
            return Trouble(None, "another process keeps the database locked")
        case _ if is_damage(error):
            return Trouble(DiskState.DEGRADED, f"the database is damaged ({error})")
        case apsw.IOError() | apsw.ReadOnlyError():
            return Trouble(DiskState.DEGRADED, f"the database cannot be written now ({error})")
        case _:
            return Trouble(None, f"the database cannot be written now ({error})")


def find_damage(db: apsw.Connection) -> str | None:
    """The first things that are wrong in the structure of the database, None if it is sound. Raises apsw.Error."""
    try:
        found = [line for (text,) in db.execute(f"PRAGMA quick_check({_SHOWN})") for line in str(text).splitlines()]
        if found == ["ok"]:
            return None
        rows: list[tuple[Any, ...]] = db.execute("SELECT rootpage, type || ' ' || name FROM sqlite_schema").fetchall()
    except apsw.Error as error:
        if not is_damage(error):
            raise
        return str(error)
    names = dict(rows)
    lines = [line for line in found if not line.startswith("***")][:_SHOWN]  # a heading
    return "; ".join(re.sub(r"\bTree (\d+)", lambda tree: names.get(int(tree[1]), tree[0]), line) for line in lines)
