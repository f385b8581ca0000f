"""Time as the engine sees it: the wall clock for schedules, the monotonic clock for durations."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall clock, epoch milliseconds. It may jump in both directions."""
        ...

    def monotonic(self) -> float:
        """Seconds since some point; never goes back, and stands still while the machine is suspended."""
        ...


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()
