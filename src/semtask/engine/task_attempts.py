"""The attempts of tasks, from their claims to their finishes. There may be thousands a second: they go in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from semtask.engine.background import Background
from semtask.engine.live import Key, LiveAttempts
from semtask.errors import RpcError
from semtask.executors.base import TaskEnd, TaskExecutor
from semtask.host.clocks import Clock
from semtask.model.job import Job, ProgressNote
from semtask.store.base import Store
from semtask.store.requests import Finish, Running
from semtask.telemetry.events import AttemptEnded, AttemptStarted, Committed, Events
from semtask.telemetry.logs import about

log = logging.getLogger("semtask.attempt")


class LogWatch(Protocol):
    """Keeps logs below their cap, and wakes those who follow them."""

    def add(self, job_id: str, claim_no: int) -> None: ...
    def remove(self, job_id: str, claim_no: int) -> None: ...


LONG_S = 1.0  # the log of a task that runs for so long is kept below its cap while it runs


class TaskAttempts:
    """Hands claimed tasks to the executor and stores how they ended.

    `on_finishing` is called when the ends are about to be stored.
    """

    def __init__(
        self,
        store: Store,
        executor: TaskExecutor,
        *,
        live: LiveAttempts,
        clock: Clock,
        jitter: Callable[[], float],
        events: Events,
        on_timeout: Callable[[Job], None],
        on_finishing: Callable[[Sequence[TaskEnd]], None],
        log_watch: LogWatch,
    ) -> None:
        self._store = store
        self._executor = executor
        self._live = live
        self._clock = clock
        self._jitter = jitter
        self._events = events
        self._on_timeout = on_timeout
        self._on_finishing = on_finishing
        self._log_watch = log_watch
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._young: dict[Key, float] = {}  # since when they run; in order
        self._watched: set[Key] = set()
        self._look: asyncio.TimerHandle | None = None
        self._writes = Background()

    def start(self, worker: str, jobs: Sequence[Job]) -> None:
        """Their claims are committed."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for job in jobs:
            key = (job.job_id, job.claim_no)
            self._live.add(job)
            self._young[key] = now
            if job.timeout_ms is not None:
                self._timers[key] = loop.call_later(job.timeout_ms / 1000, self._on_timeout, job)
            self._events.emit(AttemptStarted(job))
        if self._look is None:
            self._look = loop.call_later(LONG_S, self._look_for_long_ones)
        self._executor.start(worker, jobs)

    def stop(self, running: Running) -> None:
        """Pass a committed stop reason on. One that is not ours is left to its own watcher."""
        if (running.job_id, running.claim_no) in self._live:
            self._executor.stop(running.job_id, running.claim_no, running.reason, running.grace_ms)

    def ended(self, ends: Sequence[TaskEnd]) -> None:
        now = self._clock.now_ms()
        finishes = []
        for end in ends:
            key = (end.job.job_id, end.job.claim_no)
            self._live.ended(key)
            self._young.pop(key, None)
            if timer := self._timers.pop(key, None):
                timer.cancel()
            finishes.append(
                Finish(
                    job_id=end.job.job_id,
                    claim_no=end.job.claim_no,
                    outcome=end.outcome,
                    now=now,
                    jitter=self._jitter(),
                )
            )
        self._writes.spawn(self._finish(ends, finishes), "storing ends of tasks")
        # A claim that is submitted now comes behind these finishes, so the slots are free by then.
        self._on_finishing(ends)

    def refuse(self, ends: Sequence[TaskEnd]) -> None:
        """These claims are not handed to a worker; they end like this."""
        for end in ends:
            self._live.add(end.job)
        self.ended(ends)

    def progress(self, notes: Sequence[ProgressNote]) -> None:
        self._writes.spawn(self._store.record_progress(notes), "storing progress")

    async def _finish(self, ends: Sequence[TaskEnd], finishes: Sequence[Finish]) -> None:
        asked = self._clock.monotonic()
        try:
            finished = await self._store.finish_many(finishes)
        except RpcError as error:
            log.error("the ends of %d tasks were not stored: %s", len(ends), error)  # noqa: TRY400
            finished = []
        else:
            self._events.emit(Committed(self._clock.monotonic() - asked))
        for end, one in zip(ends, finished, strict=False):
            job = end.job
            if one.decision is None:
                log.warning("a late report of attempt %d changed nothing", job.claim_no, extra=about(job))
            else:
                self._events.emit(AttemptEnded(job, one.decision, end.ran_s))
        for end in ends:
            key = (end.job.job_id, end.job.claim_no)
            if key in self._watched or end.outcome.log_bytes:
                self._watched.discard(key)
                self._log_watch.remove(*key)
            self._live.remove(key)

    def _look_for_long_ones(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time() - LONG_S
        long = [key for key, since in self._young.items() if since <= before]
        for key in long:
            del self._young[key]
            self._watched.add(key)
            self._log_watch.add(*key)
        self._look = loop.call_later(LONG_S, self._look_for_long_ones) if self._young else None
