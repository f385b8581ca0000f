"""What a new daemon does about the attempts of a former one. It reads facts, never timers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from semtask.engine.background import Background
from semtask.model.job import ExecutionMode, Job
from semtask.model.outcome import Outcome, interrupted
from semtask.model.state import StopReason
from semtask.store.base import StopRequest, StopSelector, Store
from semtask.telemetry.counters import ORPHANED_JOBS
from semtask.telemetry.logs import about

log = logging.getLogger("semtask.recovery")

# No fact depends on this: only when the sockets open, if a tree takes its time to die.
READY_WITHIN_S = 0.5


class Judge(Protocol):
    """The executor's knowledge of what a former daemon left behind (see executors.former_attempts)."""

    async def judge(self, job: Job) -> Outcome | None:
        """How the claim ended, with everything of it verified gone; None while its lock is held."""
        ...

    async def wait_unlocked(self, job: Job) -> None: ...


class Recovery:
    """Settles every RUNNING claim of a former daemon, at once where it has ended, else as soon as it has.

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
        if not jobs:
            return
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
            await self._mark_interrupted(job)
            outcome = await self._outcome_of_locked(job)
        await self._settle(job, outcome)

    async def _judged(self, job: Job) -> Outcome | None:
        if job.execution_mode is ExecutionMode.IN_PROCESS:
            return interrupted("the daemon stopped while the task ran")
        return await self._judge.judge(job)

    async def _mark_interrupted(self, job: Job) -> None:
        selector = StopSelector(job_id=job.job_id)
        await self._store.stop(StopRequest(selector=selector, reason=StopReason.INTERRUPTED, now=self._now_ms()))

    async def _outcome_of_locked(self, job: Job) -> Outcome:
        unlocked = asyncio.ensure_future(self._judge.wait_unlocked(job))
        try:
            await asyncio.wait({unlocked}, timeout=self._window_s)
            if not unlocked.done():
                log.error("attempt %d is still being stopped", job.claim_no, extra=about(job))
                await self._store.record_kill_failed(job.job_id, job.claim_no, self._now_ms())
            await unlocked
            while (outcome := await self._judge.judge(job)) is None:
                await self._judge.wait_unlocked(job)
        finally:
            unlocked.cancel()
        return outcome
