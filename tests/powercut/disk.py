"""What a power cut may leave of the files in a trace: what was synced is certain, everything else is not."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from tests.powercut.trace import Kind, Op

# lose: nothing that was not synced; prefix: it was lost from some moment on; subset: any of the writes are there;
# torn_*: any sectors of them, in any order; keep: the disk was quick enough.
Policy = Literal["lose", "prefix", "subset", "torn_512", "torn_4096", "keep"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
_SECTORS = {"torn_512": 512, "torn_4096": 4096}


@dataclass
class _File:
    durable: bytearray | None = None  # None: it may not even have a name
    pending: list[tuple[int, Op]] = field(default_factory=list)  # with their places in the trace


class Disk:
    """Follows a trace operation by operation."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._ghosts: dict[str, _File] = {}  # deleted, but the folder is not known to be on the disk
        self._renames: list[tuple[str, str]] = []  # the same
        self._place = 0

    def apply(self, op: Op) -> None:
        if op.kind in {Kind.WRITE, Kind.TRUNCATE}:
            self._files.setdefault(op.file, _File()).pending.append((self._place, op))
        elif op.kind is Kind.SYNC:
            file = self._files.setdefault(op.file, _File())
            file.durable = file.durable if file.durable is not None else bytearray()
            for place, write in file.pending:
                if place < op.number:
                    _put(file.durable, write)
            file.pending = [item for item in file.pending if item[0] >= op.number]
            self._settle_folder()
        elif op.kind is Kind.FAILED_SYNC and op.file in self._files:
            file = self._files[op.file]
            file.pending = [item for item in file.pending if item[0] >= op.number]
        elif op.kind is Kind.DELETE and op.file in self._files:
            self._ghosts[op.file] = self._files.pop(op.file)
        elif op.kind is Kind.RENAME:
            self._files[op.data.decode()] = self._files.pop(op.file)
            self._renames.append((op.file, op.data.decode()))
        elif op.kind is Kind.FOLDER:
            self._settle_folder()
        self._place += 1

    def _settle_folder(self) -> None:
        """A sync of the folder, or of any file in it, commits what was done to the folder before."""
        self._ghosts.clear()
        self._renames.clear()

    def cut(self, policy: Policy, dice: random.Random) -> dict[str, bytes]:
        """The files after a power cut now."""
        files = dict(self._files)
        if policy != "keep":
            files |= {name: f for name, f in self._ghosts.items() if name not in files and dice.random() < 0.5}
            for old, new in self._renames:
                if policy == "lose" or dice.random() < 0.5:
                    files[old] = files.pop(new)
        image = {}
        for name, file in files.items():
            kept = _kept([op for _, op in file.pending], policy, dice)
            if file.durable is None and not kept:
                continue
            content = bytearray(file.durable or b"")
            for op in kept:
                _put(content, op)
            image[name] = bytes(content)
        return image


def _kept(pending: list[Op], policy: Policy, dice: random.Random) -> list[Op]:
    if policy == "lose":
        return []
    if policy == "prefix":
        return pending[: dice.randint(0, len(pending))]
    if policy == "subset":
        return [op for op in pending if dice.random() < 0.5]
    if policy in _SECTORS:
        sectors = [part for op in pending for part in _sectors(op, _SECTORS[policy])]
        sectors = [part for part in sectors if dice.random() < 0.5]
        dice.shuffle(sectors)
        return sectors
    return pending


def _sectors(op: Op, size: int) -> Iterator[Op]:
    """The parts of a write that come to the disk one by one."""
    if op.kind is Kind.TRUNCATE:
        yield op
        return
    at = 0
    while at < len(op.data):
        end = min(len(op.data), at + size - (op.number + at) % size)
        yield Op(op.kind, op.file, op.number + at, op.data[at:end])
        at = end


def _put(content: bytearray, op: Op) -> None:
    if op.kind is Kind.TRUNCATE:
        del content[op.number :]
        content.extend(bytes(op.number - len(content)))
    else:
        if len(content) < op.number:
            content.extend(bytes(op.number - len(content)))
        content[op.number : op.number + len(op.data)] = op.data


def write_image(folder: Path, image: dict[str, bytes]) -> None:
    """Into a new folder, as private as a home must be."""
    folder.mkdir(mode=0o700)
    for name, content in image.items():
        (folder / name).write_bytes(content)


def cuts(ops: Sequence[Op], places: Sequence[int]) -> Iterator[tuple[int, Disk]]:
    """The disk after so many operations, for each of the places, which are in order."""
    disk = Disk()
    done = 0
    for place in places:
        for op in ops[done:place]:
            disk.apply(op)
        done = place
        yield place, disk
