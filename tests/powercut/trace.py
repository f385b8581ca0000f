"""The trace: every write, truncation, sync and deletion of a database's files, and every answer, in their order."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple


class Kind(IntEnum):
    WRITE = 1
    TRUNCATE = 2
    SYNC = 3  # `number`: how many operations the trace had when it began; later ones are not covered
    FAILED_SYNC = 4  # what was not synced before may never come to the disk, whatever later syncs say
    DELETE = 5
    ANSWER = 6  # bytes that a client may have seen
    RENAME = 7  # `data`: the new name
    FOLDER = 8  # the folder was synced
    OPEN = 9


class Op(NamedTuple):
    kind: Kind
    file: str
    number: int = 0  # WRITE: the offset, TRUNCATE: the size
    data: bytes = b""


_HEAD = struct.Struct("<BHQI")


class Recorder:
    """Appends to a trace. An operation is written down when it is done, an answer before it leaves."""

    def __init__(self, trace: Path, folder: Path) -> None:
        self._folder = str(folder)
        self._lock = threading.Lock()
        self._fd = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        ops, whole = _parse(trace.read_bytes())
        self._ops = len(ops)
        os.ftruncate(self._fd, whole)  # the process before may have been killed in the middle of a note

    def close(self) -> None:
        os.close(self._fd)

    def note(self, op: Op) -> None:
        name = op.file.encode()
        with self._lock:
            os.write(self._fd, _HEAD.pack(op.kind, len(name), op.number, len(op.data)) + name + op.data)
            self._ops += 1

    def answer(self, body: bytes) -> None:
        self.note(Op(Kind.ANSWER, "", 0, body))

    def state(self, path: Path, *, durable: bool = False) -> None:
        """The file as it is now: a process that was killed may have written more than it wrote down."""
        content = path.read_bytes()
        self.note(Op(Kind.TRUNCATE, path.name, len(content)))
        self.note(Op(Kind.WRITE, path.name, 0, content))
        if durable:
            self.note(Op(Kind.SYNC, path.name, self._ops))

    # --- vfs.Observer ------------------------------------------------------------------------------------------------

    def opened(self, path: str) -> int:
        self._note_file(Kind.OPEN, path)
        return 0

    def write(self, path: str, data: bytes, offset: int, do: Callable[[], int]) -> int:
        code = do()
        self._note_file(Kind.WRITE, path, offset, data)  # a write that failed may have written something
        return code

    def truncate(self, path: str, size: int, do: Callable[[], int]) -> int:
        code = do()
        if code == 0:
            self._note_file(Kind.TRUNCATE, path, size)
        return code

    def sync(self, path: str, do: Callable[[], int]) -> int:
        with self._lock:
            begin = self._ops
        code = do()
        self._note_file(Kind.FAILED_SYNC if code else Kind.SYNC, path, begin)
        return code

    def delete(self, path: str, do: Callable[[], int]) -> int:
        code = do()
        if code == 0:
            self._note_file(Kind.DELETE, path)
        return code

    def _note_file(self, kind: Kind, path: str, number: int = 0, data: bytes = b"") -> None:
        folder, _, name = path.rpartition("/")
        if folder == self._folder and not name.endswith("-shm"):
            self.note(Op(kind, name, number, data))


def read(trace: Path) -> list[Op]:
    return _parse(trace.read_bytes())[0]


def _parse(content: bytes) -> tuple[list[Op], int]:
    """The operations, and how many bytes they take."""
    ops = []
    at = 0
    while at + _HEAD.size <= len(content):
        kind, name_bytes, number, data_bytes = _HEAD.unpack_from(content, at)
        start = at + _HEAD.size
        end = start + name_bytes + data_bytes
        if end > len(content):
            break
        name = content[start : start + name_bytes].decode()
        ops.append(Op(Kind(kind), name, number, content[start + name_bytes : end]))
        at = end
    return ops, at
