"""What the measured tasks do, the same for everyone: count, or write down a time. Read from outside, by nobody's API.

Standard library only: it runs inside the workers of the peers as well. The clock is time.monotonic(), which all
processes of a machine share. A thread counts in a file of its own, so that no lock and no system call is measured.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = "BENCHMARK_MARKS"  # the environment variable that names the folder of the marks
_TICKS = struct.Struct("<Qdd")
_thread = threading.local()


def tick() -> None:
    """A job has run."""
    try:
        slot: _Slot = _thread.slot
    except AttributeError:
        slot = _thread.slot = _Slot()
    slot.tick()


class _Slot:
    def __init__(self) -> None:
        path = f"{os.environ[FOLDER]}/{os.getpid()}-{threading.get_ident()}.ticks"
        Path(path).write_bytes(bytes(_TICKS.size))
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _TICKS.size)
        self._count = 0
        self._first = 0.0

    def tick(self) -> None:
        now = time.monotonic()
        self._first = self._first or now
        self._count += 1
        _TICKS.pack_into(self._memory, 0, self._count, self._first, now)


@dataclass(frozen=True)
class Ticks:
    count: int
    first: float
    last: float


def read_ticks(folder: Path) -> Ticks:
    """All threads together. A thread that has not ticked yet does not count."""
    slots = [_TICKS.unpack(data) for path in folder.glob("*.ticks") if len(data := path.read_bytes()) == _TICKS.size]
    slots = [slot for slot in slots if slot[0]]
    if not slots:
        return Ticks(0, 0.0, 0.0)
    return Ticks(sum(s[0] for s in slots), min(s[1] for s in slots), max(s[2] for s in slots))


def mark(name: str, *numbers: float) -> None:
    """Append `numbers` and the time of now to the file `name`. One short append is atomic."""
    now = time.monotonic()
    file = os.open(f"{os.environ[FOLDER]}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, (" ".join(map(repr, (*numbers, now))) + "\n").encode())
    os.close(file)


def read_marks(folder: Path, name: str) -> list[list[float]]:
    path = folder / name
    if not path.exists():
        return []
    return [[float(word) for word in line.split()] for line in path.read_text().splitlines()]


def clear(folder: Path) -> None:
    """Only while no worker runs: one that does goes on to count in the file it has."""
    for path in folder.iterdir():
        path.unlink()
