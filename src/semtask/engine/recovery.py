"""What a new daemon does about the attempts of a former one. It reads facts, never timers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from semtask.engine.background import Background
from semtask.errors import RpcError
from semtask.model.job import Job
from semtask.model.outcome import Outcome
from semtask.model.state import StopReason
from semtask.store.base import Store
from semtask.store.requests import StopRequest, StopSelector
from semtask.telemetry.counters import ORPHANED_JOBS
from semtask.telemetry.logs import about

log = logging.getLogger("semtask.recovery")

# No fact depends on this: only when the sockets open, if a tree takes its time to die.
READY_WITHIN_S = 0.5
AGAIN_S = 1.0

T = TypeVar("T")


class Judge(Protocol):
    """The executor's knowledge of what a former daemon left behind (see executors.former_attempts)."""

    async def judge(self, job: Job) -> Outcome | None:
        """How the claim ended, with everything of it verified gone; None while its lock is held."""
        ...

    async def wait_unlocked(self, job: Job) -> None: ...

    async def remove_abandoned(self) -> None:
        """Remove what former workers left, each when nothing of it is left. May take as long as one is not to be
        killed."""
        ...


class Recovery:
    """Settles every RUNNING claim of a former daemon: immediately if it has ended, otherwise as soon as it has.

    A claim whose shim still holds the lock keeps its state, its slot and its subject until the lock frees.
    """

    def __init__(
        self,
        store: Store,
        judge: Judge,
        *,
        occupy: Callable[[Job], None],
        settle: Callable[[Job, Outcome], Awaitable[None]],
        now_ms: Callable[[], int],
        window_s: float,
    ) -> None:
        self._store = store
        self._judge = judge
        self._occupy = occupy
        self._settle = settle
        self._now_ms = now_ms
        self._window_s = window_s
        self._background = Background()

    async def run(self) -> None:
        """Judge all claims. Returns when all are settled, or after a moment if some take longer: those hold their
        slots until their own facts are known."""
        jobs = await self._store.running()
        if jobs:
            await self._settle_all(jobs)
        self._background.spawn(self._judge.remove_abandoned(), "removing what former workers left")

    async def _settle_all(self, jobs: Sequence[Job]) -> None:
        log.info("judging %d attempts of a former daemon", len(jobs))
        await self._store.count({ORPHANED_JOBS: len(jobs)})
        for job in jobs:
            self._occupy(job)
            self._background.spawn(self._settle_one(job), f"settling {job.job_id}.{job.claim_no}", about=about(job))
        await self._background.idle(READY_WITHIN_S)

    async def stop(self) -> None:
        await self._background.stop()

    async def _settle_one(self, job: Job) -> None:
        outcome = await self._judged(job)
        if outcome is None:
            await self._insist(job, self._mark_interrupted)
            outcome = await self._outcome_of_locked(job)
        await self._settle(job, outcome)

    async def _judged(self, job: Job) -> Outcome | None:
        return await self._insist(job, self._judge.judge)

    async def _insist(self, job: Job, work: Callable[[Job], Awaitable[T]]) -> T:
        """No descriptor to look with, or a disk without room, must not keep the job RUNNING forever."""
        while True:
            try:
                return await work(job)
            except (OSError, RpcError) as error:
                text = "attempt %d of a former daemon cannot be settled now, trying again: %s"
                log.warning(text, job.claim_no, error, extra=about(job))
            await asyncio.sleep(AGAIN_S)

    async def _mark_interrupted(self, job: Job) -> None:
        selector = StopSelector(job_id=job.job_id)
        await self._store.stop(StopRequest(selector=selector, reason=StopReason.INTERRUPTED, now=self._now_ms()))

    async def _outcome_of_locked(self, job: Job) -> Outcome:
        judged = asyncio.ensure_future(self._judged_unlocked(job))
        try:
            await asyncio.wait({judged}, timeout=self._window_s)
            if not judged.done():
                log.error("attempt %d is still being stopped", job.claim_no, extra=about(job))
                await self._insist(job, self._record_kill_failed)
            return await judged
        finally:
            judged.cancel()

    async def _judged_unlocked(self, job: Job) -> Outcome:
        while True:
            await self._insist(job, self._judge.wait_unlocked)
            outcome = await self._judged(job)
            if outcome is not None:  # else processes of it survive SIGKILL
                return outcome

    async def _record_kill_failed(self, job: Job) -> None:
        await self._store.record_kill_failed(job.job_id, job.claim_no, self._now_ms())
