"""Job ids: UUID version 7 (RFC 9562), increasing within one maker even inside one millisecond. Names of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator

MAX_NAME = 128  # characters of a job_type

_RAND_BITS = 74
_RAND_MASK = (1 << _RAND_BITS) - 1
_LOW_MASK = (1 << 62) - 1


class JobIds:
    """Makes ids from a wall clock (epoch ms) and a source of random bytes, both passed in."""

    def __init__(self, now_ms: Callable[[], int], random_bytes: Callable[[int], bytes]) -> None:
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._steps = _numbers(random_bytes)
        self._last_ms = -1
        self._head = ""
        self._tail = 0

    def new(self) -> str:
        """The next id. A clock that does not advance, or steps back, only increments the random part."""
        now = self._now_ms()
        if now > self._last_ms:
            self._begin(now)
        else:
            self._tail += 1 + next(self._steps)
            if self._tail > _RAND_MASK:
                self._begin(self._last_ms + 1)
        low = self._tail & _LOW_MASK
        return f"{self._head}{self._tail >> 62:03x}-{0x8000 | low >> 48:04x}-{low & 0xFFFF_FFFF_FFFF:012x}"

    def _begin(self, ms: int) -> None:
        self._last_ms = ms
        self._head = f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7"
        # The top bit starts at 0, so that counting up within a millisecond has room.
        self._tail = int.from_bytes(self._random_bytes(10), "big") & (_RAND_MASK >> 1)


def _numbers(random_bytes: Callable[[int], bytes]) -> Iterator[int]:
    """Random numbers of 32 bits, drawn by the thousand: one call of the system for each id is a third of its cost."""
    while True:
        yield from memoryview(random_bytes(4096)).cast("I")


def command_name(program: str) -> str:
    """What a command is called that was not named: its program, with `?` for what no name may have."""
    name = "".join(c if c.isprintable() else "?" for c in program.rpartition("/")[2])
    return name[:MAX_NAME] or "command"
