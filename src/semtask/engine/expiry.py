"""Ends what has waited or run too long: ttl and deadline, by the wall clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from semtask.engine.alarm import Alarm
from semtask.engine.live import LiveAttempts
from semtask.host.clocks import Clock
from semtask.model.job import Job
from semtask.store.base import Change, Store

BATCH = 1000


class Expiry:
    """Ends waiting jobs whose ttl or deadline is over, and stops running ones at their deadline.

    `stop(job_id, claim_no)` sees to it that the reason DEADLINE is committed and the process told.
    """

    def __init__(self, store: Store, attempts: LiveAttempts, clock: Clock, stop: Callable[[str, int], None]) -> None:
        self._store = store
        self._attempts = attempts
        self._stop_job = stop
        self._alarm = Alarm("expiry", clock, self._expire)

    async def start(self) -> None:
        self._alarm.start(await self._store.next_expiry())

    async def stop(self) -> None:
        await self._alarm.stop()

    def on_start(self, job: Job) -> None:
        self._alarm.expect(job.deadline)

    def on_changes(self, changes: Sequence[Change]) -> None:
        self._alarm.expect(min((c.expires_at for c in changes if c.expires_at is not None), default=None))

    async def _expire(self, now: int) -> int | None:
        for job_id, claim_no in self._attempts.take_overdue(now):
            self._stop_job(job_id, claim_no)
        expired = await self._store.expire(now, BATCH)
        times = [t for t in (expired.next_at, self._attempts.next_deadline) if t is not None]
        return min(times, default=None)
