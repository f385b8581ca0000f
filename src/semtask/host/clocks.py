"""Time as the engine sees it: the wall clock for schedules, the monotonic clock for durations."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Protocol

# The wall clock may be set while we sleep: no sleep is longer than this, so a jump is noticed in time.
LONGEST_SLEEP_S = 1.0


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall clock, epoch milliseconds. It may jump in both directions."""
        ...

    def monotonic(self) -> float:
        """Seconds since some point; never goes back, and does not advance while the machine is suspended."""
        ...

    async def wait_until(self, at_ms: int | None, earlier: asyncio.Event) -> None:
        """Return when the wall clock shows `at_ms`, or `earlier` is set; None has no time.

        It may return too early, and notices within a second that the clock was set.
        """
        ...


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def wait_until(self, at_ms: int | None, earlier: asyncio.Event) -> None:
        seconds = None if at_ms is None else min((at_ms - self.now_ms()) / 1000, LONGEST_SLEEP_S)
        if seconds is None or seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await earlier.wait()
