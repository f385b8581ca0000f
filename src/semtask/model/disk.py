"""In which state the disk below the home is, and what follows: decided from what is told, without looking itself."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

MIB = 2**20
FULL_BYTES = 8 * MIB
# What must be free beside the reserve before work is started again: more than FULL_BYTES, so that it does not flap.
SPARE_BYTES = 2 * FULL_BYTES
_LOW_PERCENT, _LOW_MOST = 5, 256 * MIB
# A disk that has refused a write is not believed immediately when it says that it has room, as with a quota.
_DOUBT_S = 5.0


class DiskState(StrEnum):
    """From better to worse. In every state what is stored is read, and what ends is recorded as soon as it can be."""

    OK = "OK"
    LOW = "LOW"  # nothing new is taken; what is queued goes on being run
    FULL = "FULL"  # nothing new is taken or started, and the reserve is given up
    DEGRADED = "DEGRADED"  # reading or writing fails: nothing new is taken or started


class Trouble(NamedTuple):
    """Why the store cannot write now, for people. `state` is FULL or DEGRADED, or None if the disk is not the cause."""

    state: DiskState | None
    why: str


class Room(NamedTuple):
    """Of one disk: what is free, and below what it is LOW, in bytes."""

    free: int
    low: int


def low_mark(total: int, wanted: int) -> int:
    """Below how many free bytes a disk of `total` bytes is LOW; `wanted` is what the user has set, 0 if nothing."""
    return max(wanted or min(total * _LOW_PERCENT // 100, _LOW_MOST), SPARE_BYTES)


class DiskHealth:
    """What was reported about the disk so far, and the state that follows from it."""

    def __init__(self) -> None:
        self._space = DiskState.OK
        self._trouble: Trouble | None = None
        self._damage: str | None = None
        self._released = 0
        self._doubted_until = 0.0
        self.rooms: Sequence[Room] = ()

    # --- what it is told -------------------------------------------------------------------------------------------

    def look(self, rooms: Sequence[Room], at: float) -> None:
        """The room on each of the disks at this time (seconds, monotonic)."""
        self.rooms = rooms
        if self._space is DiskState.FULL and (self._missing > 0 or at < self._doubted_until or self._refused):
            return
        # It is left later than it is entered, so that it does not flap.
        margin = 1.0 if self._space is DiskState.OK else 1.25
        tight = any(room.free - self._released < room.low * margin for room in rooms)
        full = any(room.free < FULL_BYTES for room in rooms)
        self._space = DiskState.FULL if full else DiskState.LOW if tight else DiskState.OK

    def released(self, size: int) -> None:
        """So many bytes of the reserve have been given up, 0 when it is there again."""
        self._released = size

    def trouble(self, trouble: Trouble | None, at: float) -> None:
        """The store cannot write, or can again (None), since this time (seconds, monotonic)."""
        self._trouble = trouble
        if self._refused:
            self._space = DiskState.FULL
            self._doubted_until = at + _DOUBT_S

    def damaged(self, what: str | None) -> None:
        """Something cannot be read, or everything can be (None)."""
        self._damage = what

    # --- what follows ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> DiskState:
        return DiskState.DEGRADED if self._failing or self._damage else self._space

    @property
    def no_space(self) -> bool:
        """Whether the reserve is needed, however well the disk is otherwise."""
        return self._space is DiskState.FULL

    @property
    def reason(self) -> str | None:
        """For people; None if all is well."""
        match self.state:
            case DiskState.OK:
                return None
            case DiskState.DEGRADED:
                return self._trouble.why if self._trouble is not None and self._failing else self._damage
            case DiskState.FULL if self._missing > 0:
                return f"the disk is full; free {_mib(self._missing)} MiB and all goes on by itself"
            case DiskState.FULL:
                return "the disk was full a moment ago" if self._trouble is None else self._trouble.why
        room = min(self.rooms, key=lambda room: room.free - room.low)
        return (
            f"the disk is nearly full, with {room.free // MIB} MiB free; "
            f"free {_mib(int(room.low * 1.25) - room.free)} MiB more and new jobs are taken again"
        )

    @property
    def _failing(self) -> bool:
        return self._trouble is not None and self._trouble.state is DiskState.DEGRADED

    @property
    def _refused(self) -> bool:
        return self._trouble is not None and self._trouble.state is DiskState.FULL

    @property
    def _missing(self) -> int:
        """Bytes to be freed before work is started again."""
        return self._released + SPARE_BYTES - min((room.free for room in self.rooms), default=0)


def _mib(size: int) -> int:
    return -(-size // MIB)
