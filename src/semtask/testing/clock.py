"""A wall clock that moves only when a test moves it."""

from __future__ import annotations

import asyncio
import time
from typing import Any


class FakeClock:
    """The engine's clock: epoch ms and seconds move together. Everything but `move` is called on the engine's loop."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._moved_ms = 0
        self._sleeping: dict[asyncio.Task[Any], asyncio.Event] = {}
        self._sleepers: set[asyncio.Task[Any]] = set()
        self._fell_asleep = asyncio.Event()

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        """Also runs by itself: how long things take is measured, not faked."""
        return time.monotonic() + self._moved_ms / 1000

    async def wait_until(self, at_ms: int | None, earlier: asyncio.Event) -> None:
        sleeper = asyncio.current_task()
        assert sleeper is not None
        self._sleepers.add(sleeper)
        if at_ms is not None and at_ms <= self._now_ms:
            return
        self._sleeping[sleeper] = earlier
        self._fell_asleep.set()
        try:
            await earlier.wait()
        finally:
            del self._sleeping[sleeper]

    def move(self, ms: int) -> None:
        self._now_ms += ms
        self._moved_ms += ms
        for earlier in self._sleeping.values():
            earlier.set()

    async def settled(self) -> None:
        """Wait until everybody who waits for a time has done what was due."""
        while not all(self._sleeps(sleeper) for sleeper in self._sleepers):
            self._fell_asleep.clear()
            await self._fell_asleep.wait()

    def _sleeps(self, sleeper: asyncio.Task[Any]) -> bool:
        earlier = self._sleeping.get(sleeper)
        return sleeper.done() or (earlier is not None and not earlier.is_set())
