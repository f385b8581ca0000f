"""Job ids: UUID version 7 (RFC 9562), increasing within one maker even inside one millisecond. Names of commands."""

from __future__ import annotations

from collections.abc import Callable

MAX_NAME = 128  # characters of a job_type

_RAND_BITS = 74
_RAND_MASK = (1 << _RAND_BITS) - 1


class JobIds:
    """Makes ids from a wall clock (epoch ms) and a source of random bytes, both passed in."""

    def __init__(self, now_ms: Callable[[], int], random_bytes: Callable[[int], bytes]) -> None:
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._last_ms = -1
        self._tail = 0

    def new(self) -> str:
        """The next id. A clock that stands still or steps back only counts the random part up."""
        now = self._now_ms()
        if now > self._last_ms:
            self._last_ms = now
            # The top bit starts at 0, so that counting up within a millisecond has room.
            self._tail = int.from_bytes(self._random_bytes(10), "big") & (_RAND_MASK >> 1)
        else:
            self._tail += 1 + int.from_bytes(self._random_bytes(4), "big")
            if self._tail > _RAND_MASK:
                self._last_ms += 1
                self._tail = int.from_bytes(self._random_bytes(10), "big") & (_RAND_MASK >> 1)
        rand_a, rand_b = self._tail >> 62, self._tail & ((1 << 62) - 1)
        value = (self._last_ms << 80) | (0x7 << 76) | (rand_a << 64) | (0b10 << 62) | rand_b
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def command_name(program: str) -> str:
    """What a command is called that was not named: its program, with `?` for what no name may have."""
    name = "".join(c if c.isprintable() else "?" for c in program.rpartition("/")[2])
    return name[:MAX_NAME] or "command"
