"""Makes SCHEDULED jobs due: one timer, set to the earliest of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from semtask.errors import RpcError
from semtask.host.clocks import Clock
from semtask.model.state import State
from semtask.store.base import Change, Store

log = logging.getLogger("semtask.promoter")

BATCH = 1000
# The wall clock may be set while we sleep: no sleep is longer than this, so a jump is noticed in time.
LONGEST_SLEEP_S = 1.0
RETRY_S = 1.0


class Promoter:
    """Sleeps until the next job is due; without scheduled jobs it sleeps until one comes."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._next_due: int | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._next_due = await self._store.next_due()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="promoter")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def on_changes(self, changes: Sequence[Change]) -> None:
        if self._expect(min((c.run_at or 0 for c in changes if c.after is State.SCHEDULED), default=None)):
            self._changed.set()

    def _expect(self, due: int | None) -> bool:
        """Note the time of the next due job; whether it is earlier than what was known."""
        if due is None or (self._next_due is not None and self._next_due <= due):
            return False
        self._next_due = due
        return True

    async def _run(self) -> None:
        while True:
            await self._sleep()
            if self._next_due is not None and self._next_due <= self._clock.now_ms():
                await self._promote()

    async def _promote(self) -> None:
        # Forgotten before the statement, so that a job scheduled meanwhile is not.
        self._next_due = None
        try:
            promoted = await self._store.promote(self._clock.now_ms(), BATCH)
        except RpcError as error:
            log.warning("jobs that are due could not be queued, trying again: %s", error.message)
            self._expect(self._clock.now_ms())
            await asyncio.sleep(RETRY_S)
        else:
            self._expect(promoted.next_due)

    async def _sleep(self) -> None:
        self._changed.clear()
        seconds = None
        if self._next_due is not None:
            seconds = min((self._next_due - self._clock.now_ms()) / 1000, LONGEST_SLEEP_S)
            if seconds <= 0:
                return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
