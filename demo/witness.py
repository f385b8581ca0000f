"""A witness that the engine knows nothing of: locks and a history of the jobs' own, so that the demo can prove without
trusting the engine's database that no job was lost and none ran twice at once.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def witnessed(work: Path, name: str) -> Iterator[None]:
    """Note the start and the end of a job in the history. A second one of this name at the same time fails."""
    lock = os.open(work / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _note(work, f"overlap {name}")
            raise
        _note(work, f"start {name}")
        yield
        _note(work, f"end {name}")
    finally:
        os.close(lock)


def history(work: Path) -> list[tuple[str, str]]:
    """(start, end or overlap; name of the job), in the order in which it happened."""
    lines = (work / "history").read_text().splitlines()
    return [(mark, name) for mark, _, name in (line.partition(" ") for line in lines)]


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing, whatever kills the job."""
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(text)
    temporary.rename(path)


def _note(work: Path, line: str) -> None:
    """One short append is atomic, so that the histories of all jobs fit into one file."""
    file = os.open(work / "history", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.write(file, f"{line}\n".encode())
    os.close(file)
