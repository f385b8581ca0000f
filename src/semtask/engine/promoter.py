"""Makes SCHEDULED jobs QUEUED when they are due."""

from __future__ import annotations

from collections.abc import Sequence

from semtask.engine.alarm import Alarm
from semtask.host.clocks import Clock
from semtask.model.state import State
from semtask.store.base import Change, Store

BATCH = 1000


class Promoter:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._alarm = Alarm("promoter", clock, self._promote)

    async def start(self) -> None:
        self._alarm.start(await self._store.next_due())

    async def stop(self) -> None:
        await self._alarm.stop()

    def on_changes(self, changes: Sequence[Change]) -> None:
        self._alarm.expect(min((c.run_at or 0 for c in changes if c.after is State.SCHEDULED), default=None))

    async def _promote(self, now: int) -> int | None:
        return (await self._store.promote(now, BATCH)).next_due
