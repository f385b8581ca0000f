"""A timer on the wall clock, for duties that have a next time: promoting what is due, ending what is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from semtask.engine.supervision import supervised
from semtask.errors import RpcError
from semtask.host.clocks import Clock

log = logging.getLogger("semtask.alarm")

RETRY_S = 1.0


class Alarm:
    """Calls `duty(now)` when its time has come; the duty answers when it wants to be called next, or None.

    Without a time it sleeps until `expect` names one.
    """

    def __init__(self, name: str, clock: Clock, duty: Callable[[int], Awaitable[int | None]]) -> None:
        self._name = name
        self._clock = clock
        self._duty = duty
        self._next: int | None = None
        self._earlier = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, first: int | None) -> None:
        self._keep_earlier(first)
        self._task = asyncio.get_running_loop().create_task(supervised(self._name, self._run), name=self._name)

    async def stop(self) -> None:
        """May be called twice, or without a start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def expect(self, at: int | None) -> None:
        """There is something to do at this time (epoch ms), or earlier than was known."""
        if self._keep_earlier(at):
            self._earlier.set()

    def _keep_earlier(self, at: int | None) -> bool:
        if at is None or (self._next is not None and self._next <= at):
            return False
        self._next = at
        return True

    async def _run(self) -> None:
        while True:
            self._earlier.clear()
            await self._clock.wait_until(self._next, self._earlier)
            now = self._clock.now_ms()
            if self._next is not None and self._next <= now:
                await self._call(now)

    async def _call(self, now: int) -> None:
        # Forgotten before the duty begins, so that a time named meanwhile is not.
        self._next = None
        try:
            self._keep_earlier(await self._duty(now))
        except RpcError as error:
            log.warning("%s: not now, trying again: %s", self._name, error.message)
            self._keep_earlier(now)
            await asyncio.sleep(RETRY_S)
        except Exception:
            self._keep_earlier(now)  # it is still to be done when this is started again
            raise
