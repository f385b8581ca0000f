from __future__ import annotations

import asyncio


class FakeClock:
    """Stands still until the test moves it."""

    def __init__(self, now: int = 1_700_000_000_000) -> None:
        self.now = now
        self.seconds = 1000.0

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.seconds

    async def wait_until(self, at_ms: int | None, earlier: asyncio.Event) -> None:
        if at_ms is None or at_ms > self.now:
            await earlier.wait()

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        self.now += round(seconds * 1000)
