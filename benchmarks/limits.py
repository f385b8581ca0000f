"""What SQLite can do with a lean table on this machine: a yardstick that does not change with our schema."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw

SCHEMA = """
CREATE TABLE jobs (
    id BLOB NOT NULL, seq INTEGER PRIMARY KEY, queue INTEGER NOT NULL, type INTEGER NOT NULL, state INTEGER NOT NULL,
    priority INTEGER NOT NULL, subject INTEGER, run_at INTEGER, payload TEXT NOT NULL, created_at INTEGER NOT NULL,
    started_at INTEGER, finished_at INTEGER
) STRICT;
CREATE UNIQUE INDEX by_id ON jobs (id);
CREATE INDEX ready ON jobs (queue, priority DESC, seq) WHERE state = 1;
CREATE INDEX due ON jobs (run_at) WHERE state = 0;
CREATE INDEX live ON jobs (type, subject, seq) WHERE subject IS NOT NULL AND finished_at IS NULL;
"""
INSERT = "INSERT INTO jobs (id, seq, queue, type, state, priority, payload, created_at) VALUES (?, ?, 1, 1, 1, 0, ?, ?)"
CLAIM = """
UPDATE jobs SET state = 2, started_at = ?
WHERE seq IN (SELECT seq FROM jobs WHERE queue = 1 AND state = 1 ORDER BY priority DESC, seq LIMIT ?)
RETURNING seq
"""
FINISH = "UPDATE jobs SET state = 3, finished_at = ? WHERE seq = ? AND state = 2"
PAYLOAD = '{"command": "python3", "args": ["script.py", "--input", "data.csv"], "working_dir": "/workspace"}'
NOW = 1_700_000_000_000


class Lean(NamedTuple):
    """Jobs per second: inserted by `batch` with fsync; claimed without and finished with it, by `taken`."""

    inserted: float
    cycled: float


def lean(path: Path, jobs: int, batch: int, taken: int) -> Lean:
    db = apsw.Connection(str(path))
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute(SCHEMA)
    numbers = itertools.count(1)
    rows = [(os.urandom(16), next(numbers), PAYLOAD, NOW) for _ in range(jobs)]
    inserted = _seconds(lambda: _insert(db, rows, batch))
    cycled = _seconds(lambda: _cycle(db, taken))
    db.close()
    return Lean(jobs / inserted, jobs / cycled)


def _insert(db: apsw.Connection, rows: Sequence[tuple[Any, ...]], batch: int) -> None:
    db.execute("PRAGMA synchronous = FULL")
    for first in range(0, len(rows), batch):
        db.execute("BEGIN IMMEDIATE")
        db.executemany(INSERT, rows[first : first + batch])
        db.execute("COMMIT")


def _cycle(db: apsw.Connection, taken: int) -> None:
    while True:
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("BEGIN IMMEDIATE")
        claimed = db.execute(CLAIM, (NOW, taken)).fetchall()
        db.execute("COMMIT")
        if not claimed:
            return
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        db.executemany(FINISH, [(NOW, seq) for (seq,) in claimed])
        db.execute("COMMIT")


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
