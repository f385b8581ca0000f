"""Whole copies of a database, made by SQLite while others work on it, and what is changed in one that is restored."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from semtask.store.codes import STATES
from semtask.store.sql import query
from semtask.store.sqlite_rows import id_bytes

# Pages between two looks around: a few milliseconds.
_PAGES = 512
# What the copy may leave unsynced: more would hold up the syncs of the daemon on the same disk.
_UNSYNCED_BYTES = 8 * 1024 * 1024

Progress = Callable[[int, int], None]  # bytes copied, bytes in all


class HighMarks(NamedTuple):
    """What a database has given out and never gives out again."""

    daemon_epoch: int
    next_seq: int


def copy(source: apsw.Connection, target: Path, progress: Progress) -> None:
    """Copy a database, as it is at one moment, to the new file `target`: for this user alone, complete and synced.

    One read transaction holds that moment, so the copy need not begin again when somebody writes. Raises OSError and
    apsw.Error; the caller removes what there is of `target` then.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    with closing(apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READWRITE)) as made:
        # Nobody sees the copy before it is whole: it needs no journal, and is synced here.
        made.execute("PRAGMA journal_mode = OFF").fetchall()
        made.execute("PRAGMA synchronous = OFF")
        source.execute("BEGIN")
        try:
            source.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # BEGIN alone holds nothing
            page = int(source.pragma("page_size"))
            _copy_pages(source, made, target, page, progress)
        finally:
            source.execute("ROLLBACK")
        # One file: without a write-ahead log, and without the mark that would make one.
        made.execute("PRAGMA journal_mode = DELETE").fetchall()
    sync(target)


def _copy_pages(source: apsw.Connection, made: apsw.Connection, target: Path, page: int, progress: Progress) -> None:
    unsynced = 0
    with made.backup("main", source, "main") as backup:
        while not backup.done:
            backup.step(_PAGES)
            progress((backup.page_count - backup.remaining) * page, backup.page_count * page)
            unsynced += _PAGES * page
            if unsynced >= _UNSYNCED_BYTES:
                unsynced = 0
                sync(target)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def high_marks(db: apsw.Connection) -> HighMarks:
    return HighMarks(*_rows(db, "high_marks")[0])


def nonces_of_running(db: apsw.Connection) -> list[str]:
    return [row[0] for row in _rows(db, "running_nonces") if row[0]]


def unfinished(db: apsw.Connection) -> tuple[int, int]:
    """(jobs that were running, jobs that wait), as counted."""
    running, waiting = _rows(db, "unfinished")[0]
    return int(running), int(waiting)


def adopt(db: apsw.Connection, *, taken: Mapping[str, int], marks: HighMarks | None, paused: bool, moved: bool) -> None:
    """Make a restored database go on where others have been, in one transaction.

    `taken` has the highest claim_no that is found on disk of a job, `marks` is of the database that it replaces.
    `moved`: it comes to a home that had none, so what ran is not here, and may still run where it was.
    """
    with db:
        raised = [{"job_id": id_bytes(job_id), "claim_no": claim_no} for job_id, claim_no in taken.items()]
        db.executemany(query("raise_claim_no"), raised)
        if marks is not None:
            db.execute(query("raise_high_marks"), marks._asdict())
        if moved:
            db.execute(query("forget_places"))
        if paused:
            db.execute(query("pause_all"))


def miscounted(db: apsw.Connection) -> list[str]:
    """Counts that are kept, where they are not what there is."""
    return [
        f"the queue {queue!r} says that {kept} of its jobs are {STATES.word(state)}, and {there} are"
        for queue, state, kept, there in _rows(db, "miscounted")
    ]


def _rows(db: apsw.Connection, name: str) -> list[tuple[Any, ...]]:
    return db.execute(query(name)).fetchall()
