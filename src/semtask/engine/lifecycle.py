"""The engine as a whole: which services there are, in which order they start and stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from semtask.engine.apps import Apps, Workers
from semtask.engine.attempt import Attempts
from semtask.engine.background import Background
from semtask.engine.changes import Changes
from semtask.engine.command_gate import CommandGate
from semtask.engine.command_spec import CommandDefaults
from semtask.engine.disk import DiskWatch, Reserve
from semtask.engine.dispatcher import Dispatcher
from semtask.engine.expiry import Expiry
from semtask.engine.explain import Explain
from semtask.engine.floors import SandboxFloors
from semtask.engine.janitor import AttemptFiles, Janitor, Retention
from semtask.engine.job_tokens import JobTokens
from semtask.engine.live import LiveAttempts
from semtask.engine.promoter import Promoter
from semtask.engine.recovery import Judge, Recovery
from semtask.engine.removals import Removals
from semtask.engine.slots import Slots
from semtask.engine.task_attempts import LogWatch, TaskAttempts
from semtask.engine.throttle import NEVER, LoadWatch, Throttle, cpu_limit
from semtask.engine.waits import Waits
from semtask.errors import RpcError
from semtask.executors.base import Executor, TaskEnd, TaskExecutor
from semtask.host.clocks import Clock
from semtask.host.command_policy import PolicyFile
from semtask.host.probe import HostProbe
from semtask.model.app import App
from semtask.model.job import ClaimFacts, Job
from semtask.model.outcome import FailureClass, Outcome, spawn_failed
from semtask.model.sandbox import SandboxLevel
from semtask.model.state import StopReason
from semtask.store.base import Store
from semtask.store.requests import Running, StopRequest, StopSelector
from semtask.telemetry.events import Events, Hold

log = logging.getLogger("semtask.engine")

# How long after the grace a shutdown waits for trees that do not die; their shims go on trying.
STUCK_S = 3.0
STOP_AGAIN_S = 1.0
LEARN_S = 0.02


class CommandExecutor(Executor, Protocol):
    """The executor of commands."""

    def forget(self, job_id: str, claim_no: int) -> None:
        """The finish is committed: the attempt's folder may go. Called in a thread; it may have to wait for a disk."""
        ...


class WorkerExecutor(TaskExecutor, Workers, Protocol):
    """The executor of tasks, and what it knows about apps."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much may run simultaneously, how much disk must be free, how long recovery waits before it reports a process
    that does not die, and the least sandbox of commands.
    """

    max_processes: int
    queue_concurrency: int
    cpu_throttle_threshold: float
    recovery_window_ms: int
    disk_low_bytes: int = 0  # 0: a part of the disk
    sandbox: SandboxLevel = SandboxLevel.NONE


class Engine:
    """Made of the parts that the daemon has opened; owns the order of steps between them."""

    def __init__(
        self,
        *,
        store: Store,
        executor: CommandExecutor,
        workers: WorkerExecutor,
        read_apps: Callable[[], Sequence[App]],
        former: Judge,
        log_watch: LogWatch,
        changes: Changes,
        clock: Clock,
        jitter: Callable[[], float],
        events: Events,
        defaults: CommandDefaults,
        policy: PolicyFile,
        facts: Callable[[str, int], ClaimFacts],
        node_id: str,
        limits: Limits,
        probe: HostProbe,
        reserves: Sequence[Reserve],
        files: AttemptFiles,
        retention: Retention,
    ) -> None:
        self.started = False
        self._store = store
        self._executor = executor
        self._log_watch = log_watch
        self._clock = clock
        self._background = Background()
        self._files = files
        self._removals = Removals(self._remove_files, self._background)
        self.slots = Slots()
        self.live = LiveAttempts()
        self.gate = CommandGate(
            policy,
            defaults,
            hold=lambda reason: self.dispatcher.hold_commands(reason),  # noqa: PLW0108 - made below
        )
        self.floors = SandboxFloors(limits.sandbox)
        self.job_tokens = JobTokens()
        self.commands = Attempts(
            store,
            executor,
            live=self.live,
            gate=self.gate,
            floors=self.floors,
            tokens=self.job_tokens,
            defaults=defaults,
            clock=clock,
            jitter=jitter,
            events=events,
            on_timeout=self._timed_out,
            on_finishing=self._finishing,
            on_end=self._ended,
            evidence=files.evidence,
        )
        self.tasks = TaskAttempts(
            store,
            workers,
            live=self.live,
            clock=clock,
            jitter=jitter,
            events=events,
            on_timeout=self._timed_out,
            on_finishing=self._tasks_finishing,
            log_watch=log_watch,
        )
        self.apps = Apps(
            store,
            workers,
            self.slots,
            read=read_apps,
            wake=lambda: self.dispatcher.wake_tasks(),  # noqa: PLW0108 - made below
        )
        self.load = LoadWatch(
            probe,
            Throttle(cpu_limit(limits.cpu_throttle_threshold)),
            clock,
            apply=lambda reason: self.dispatcher.throttle(reason),  # noqa: PLW0108 - made below
            running=lambda: self.slots.running,
            count=self.count,
        )
        self.dispatcher = Dispatcher(
            store,
            slots=self.slots,
            start=self._start,
            start_tasks=self._start_tasks,
            tasks=workers,
            offers=self.apps,
            facts=facts,
            clock=clock,
            node_id=node_id,
            max_processes=limits.max_processes,
            queue_concurrency=limits.queue_concurrency,
            before_claim=self._before_claim,
        )
        self.waits = Waits(
            self.slots, self.live, executor, workers, lambda key, waits: self.dispatcher.block(key, blocked=waits)
        )
        self.explain = Explain(self.dispatcher, self.slots, self.apps, self.waits)
        self.disk = DiskWatch(
            reserves,
            low_bytes=limits.disk_low_bytes,
            clock=clock,
            suspend=self.dispatcher.suspend,
            running=lambda: self.slots.running,
            make_room=lambda: self.janitor.make_room(),  # noqa: PLW0108 - made below
            check=store.find_damage,
        )
        store.report_to(self.disk)
        self._throttles = limits.cpu_throttle_threshold < NEVER
        self.janitor = Janitor(store, files, retention, clock)
        self._promoter = Promoter(store, clock)
        self._expiry = Expiry(store, self.live, clock, self._deadline_passed)
        self._recovery = Recovery(
            store,
            former,
            occupy=self._occupy_again,
            settle=self.commands.settle,
            now_ms=clock.now_ms,
            window_s=limits.recovery_window_ms / 1000,
        )
        changes.listen(self.dispatcher.on_changes)
        changes.listen(self._promoter.on_changes)
        changes.listen(self._expiry.on_changes)
        changes.listen(self.janitor.on_changes)

    async def recover(self) -> None:
        """Settle what a former daemon left. Before the sockets open."""
        await self._recovery.run()

    async def start(self) -> None:
        await self._promoter.start()
        await self._expiry.start()
        await self.apps.start()
        self.gate.needed()
        self._background.spawn(self.disk.start(), "making a reserve of disk space")
        queues = await self._store.queues()
        for row in queues:
            self.floors.configure(row)
        self.dispatcher.open(queues)
        self.janitor.start()
        self.started = True

    async def stop(self, *, wait_s: float, at_once: asyncio.Event) -> None:
        """Claim nothing more, let running jobs go on for `wait_s` or until `at_once`, then stop them.

        Afterwards every attempt is finished in the store, or its shim still fights for it and recovery will see.
        """
        self.dispatcher.close()
        await self.janitor.stop()
        await self.gate.stop()
        await self.load.stop()
        await self._promoter.stop()
        await self._expiry.stop()
        await self.dispatcher.closed()
        await self.apps.stop()
        if self.live.keys:
            await self._drain(wait_s, at_once)
        await self._stop_attempts(at_once)
        await self._recovery.stop()
        self._removals.flush()
        await self._background.idle(STUCK_S)
        await self._background.stop()
        await self.disk.stop()

    async def settled(self) -> None:
        """Wait until every job that could be claimed now has been."""
        while await self.dispatcher.settled() or await self.apps.settled():
            pass

    def stop_running(self, running: Running) -> None:
        """Pass a committed stop reason on to what runs here."""
        self.commands.stop(running)
        self.tasks.stop(running)

    def kill_failed(self, job_id: str, claim_no: int) -> None:
        """Processes of this attempt survive SIGKILL: say so; the job keeps its state and its slot."""
        log.error("processes of attempt %d survive SIGKILL", claim_no, extra=self.live.about((job_id, claim_no)))
        self._background.spawn(
            self._store.record_kill_failed(job_id, claim_no, self._clock.now_ms()),
            f"storing kill_failed of {job_id}",
            about=self.live.about((job_id, claim_no)),
        )

    def log_limit(self, job_id: str, claim_no: int) -> None:
        """The log of this attempt is over its cap and cannot be cut: stop the job."""
        extra = self.live.about((job_id, claim_no))
        log.error("the log of attempt %d cannot be cut, the job is stopped", claim_no, extra=extra)
        self._order_stop(job_id, claim_no, StopReason.LOG_LIMIT)

    @property
    def holds(self) -> set[Hold]:
        """Why jobs are held back now."""
        holds: set[Hold] = {"host_busy"} if self.load.active else set()
        if self.gate.problem:
            holds.add("policy")
        shortage = self.dispatcher.holds.shortage
        return holds | {shortage} if shortage else holds

    def count(self, name: str, by: int) -> None:
        """Add to a persistent counter."""
        self._background.spawn(self._store.count({name: by}), f"counting {name}")

    async def _drain(self, wait_s: float, at_once: asyncio.Event) -> None:
        log.info("waiting up to %.1f s for %d running jobs", wait_s, len(self.live.keys))
        hurry = asyncio.ensure_future(at_once.wait())
        idle = asyncio.ensure_future(self.live.idle(wait_s))
        await asyncio.wait({hurry, idle}, return_when=asyncio.FIRST_COMPLETED)
        for task in (hurry, idle):
            task.cancel()
        await asyncio.gather(hurry, idle, return_exceptions=True)

    async def _stop_attempts(self, at_once: asyncio.Event) -> None:
        longest = await self._ask_to_stop(0 if at_once.is_set() else None)
        if await self._idle_or(at_once, longest / 1000 + STUCK_S):
            return
        if at_once.is_set():
            await self._ask_to_stop(0)
            if await self.live.idle(STUCK_S):
                return
        log.error("%d jobs do not end; the next daemon will see to them", len(self.live.keys))

    async def _idle_or(self, at_once: asyncio.Event, timeout_s: float) -> bool:
        idle = asyncio.ensure_future(self.live.idle(timeout_s))
        waits: set[asyncio.Future[bool]] = {idle}
        if not at_once.is_set():
            waits.add(asyncio.ensure_future(at_once.wait()))
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return not self.live.keys

    async def _ask_to_stop(self, grace_ms: int | None) -> int:
        """Returns the longest grace that was given, in ms."""
        longest = 0
        for job_id, claim_no in self.live.keys:
            try:
                longest = max(longest, await self._stop_one(job_id, StopReason.SHUTDOWN, grace_ms))
            except RpcError as error:
                extra = self.live.about((job_id, claim_no))
                log.warning("the stop of a job could not be stored: %s", error.message, extra=extra)
        return longest

    async def _stop_one(self, job_id: str, reason: StopReason, grace_ms: int | None = None) -> int:
        """Commit the stop reason, then tell the process. Returns the grace, in ms; 0 if it does not run."""
        selector = StopSelector(job_id=job_id)
        now = self._clock.now_ms()
        stopped = await self._store.stop(StopRequest(selector=selector, reason=reason, now=now, grace_ms=grace_ms))
        for running in stopped.stopping:
            self.stop_running(running)
        return max((running.grace_ms for running in stopped.stopping), default=0)

    def _before_claim(self) -> None:
        if self._throttles:
            self.load.needed()
        self.disk.needed()
        self.gate.needed()

    def _start(self, job: Job) -> None:
        self._log_watch.add(job.job_id, job.claim_no)
        self.commands.start(job)
        self._expiry.on_start(job)

    def _start_tasks(self, worker: str, jobs: Sequence[Job]) -> None:
        refused = [TaskEnd(job, spawn_failed(why), None) for job in jobs if (why := self.floors.why_no_task(job.queue))]
        if refused:
            self.tasks.refuse(refused)
            jobs = [job for job in jobs if not self.floors.why_no_task(job.queue)]
        self.tasks.start(worker, jobs)
        for job in jobs:
            if job.deadline is not None:
                self._expiry.on_start(job)

    def _occupy_again(self, job: Job) -> None:
        """A job that a former daemon left running."""
        self.dispatcher.occupy(job, job.claim.worker if job.claim else None)

    def _timed_out(self, job: Job) -> None:
        self._order_stop(job.job_id, job.claim_no, StopReason.TIMEOUT)

    def _deadline_passed(self, job_id: str, claim_no: int) -> None:
        self._order_stop(job_id, claim_no, StopReason.DEADLINE)

    def _order_stop(self, job_id: str, claim_no: int, reason: StopReason) -> None:
        about_it = self.live.about((job_id, claim_no))
        self._background.spawn(self._stop_in_the_end(job_id, claim_no, reason), f"stopping {job_id}", about=about_it)

    async def _stop_in_the_end(self, job_id: str, claim_no: int, reason: StopReason) -> None:
        """Stop the attempt, however long the store cannot write, unless it ends before."""
        # It may have ended already: a daemon that was stopped for a while learns of it after the time that has passed.
        await asyncio.sleep(LEARN_S)
        while self.live.is_live((job_id, claim_no)):
            try:
                await self._stop_one(job_id, reason)
                return
            except RpcError as error:
                extra = self.live.about((job_id, claim_no))
                log.warning("the stop of a job cannot be stored, trying again: %s", error.message, extra=extra)
            await asyncio.sleep(STOP_AGAIN_S)

    def _finishing(self, job: Job, outcome: Outcome) -> None:
        if outcome.failure is FailureClass.INFRA:
            self.dispatcher.holds.back_off(outcome.error or "")
        elif outcome.executed:
            self.dispatcher.holds.room_again()
        self.waits.ended(job)
        self.dispatcher.release([job])

    def _tasks_finishing(self, ends: Sequence[TaskEnd]) -> None:
        for end in ends:
            self.waits.ended(end.job)
            if end.outcome.failure is FailureClass.INFRA:
                self.dispatcher.holds.back_off(end.outcome.error or "")
        self.dispatcher.release(end.job for end in ends)

    def _ended(self, job: Job) -> None:
        self._log_watch.remove(job.job_id, job.claim_no)
        self._removals.add(job.job_id, job.claim_no)

    def _remove_files(self, job_id: str, claim_no: int) -> None:
        self._executor.forget(job_id, claim_no)
        self._files.remove_empty_logs(job_id, claim_no)
