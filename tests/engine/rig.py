"""The heart of the engine on a clock that the test moves: real store, dispatcher, attempts and timers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semtask.engine.apps import Apps
from semtask.engine.attempt import Attempts, draw_jitter
from semtask.engine.background import Background
from semtask.engine.changes import Changes
from semtask.engine.command_gate import CommandGate
from semtask.engine.command_spec import CommandDefaults
from semtask.engine.dispatcher import Dispatcher
from semtask.engine.expiry import Expiry
from semtask.engine.floors import SandboxFloors
from semtask.engine.job_tokens import JobTokens
from semtask.engine.live import LiveAttempts
from semtask.engine.promoter import Promoter
from semtask.engine.slots import Slots
from semtask.executors.base import AppStatus, CommandSpec, Executor, WorkerStatus
from semtask.host.command_policy import PolicyFile
from semtask.model import outcome
from semtask.model.app import App
from semtask.model.job import ClaimFacts, ExecutionMode, Job, NewJob, OnInterrupt, ProcessIdentity, Taker
from semtask.model.outcome import Outcome
from semtask.model.sandbox import SandboxLevel
from semtask.model.state import StopReason
from semtask.store.requests import StopRequest, StopSelector
from semtask.store.sqlite import SqliteStore, open_store
from semtask.telemetry.events import Events
from tests.engine.clock import FakeClock

DEFAULTS = CommandDefaults(env={}, working_dir="/", umask=0o022, home="/h")
JOB_ID = "01a20785-1766-7443-a093-3674216bd693"


class MovedClock(FakeClock):
    """Those who wait for a time are woken when the test moves the clock, forward or back."""

    def __init__(self) -> None:
        super().__init__()
        self._moved = asyncio.Condition()

    async def move_to(self, now: int) -> None:
        async with self._moved:
            self.now = now
            self._moved.notify_all()

    async def wait_until(self, at_ms: int | None, earlier: asyncio.Event) -> None:
        moved = asyncio.ensure_future(self._until(at_ms))
        named = asyncio.ensure_future(earlier.wait())
        await asyncio.wait({moved, named}, return_when=asyncio.FIRST_COMPLETED)
        for wait in (moved, named):
            wait.cancel()
        await asyncio.gather(moved, named, return_exceptions=True)

    async def _until(self, at_ms: int | None) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: at_ms is not None and self.now >= at_ms)


class FailingExecutor:
    """Each command ends at once with exit code 1."""

    async def run(self, spec: CommandSpec, on_started: Callable[[ProcessIdentity], None]) -> Outcome:
        return outcome.of_command(1 << 8)

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> None:
        raise AssertionError("nothing is stopped here")

    def job_of(self, pid: int) -> None: ...


class NoWorkers:
    """No app, no worker."""

    busy_processes = 0

    def takers(self, new_processes: int, limited: Collection[str]) -> Sequence[Taker]:
        return ()

    def start(self, worker: str, jobs: Sequence[Job]) -> None:
        raise AssertionError("no task is started here")

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> None:
        raise AssertionError("nothing is stopped here")

    def job_of(self, worker: str, job_id: str, pid: int) -> None: ...
    def waits_outside(self, key: tuple[str, int], *, waits: bool) -> None: ...
    def shortage(self, tasks: Collection[str]) -> None: ...
    def configure(self, apps: Sequence[App]) -> None: ...
    def reload(self, names: Collection[str]) -> None: ...

    async def settled(self, names: Collection[str], timeout_s: float) -> bool:
        return True

    def statuses(self) -> Sequence[AppStatus]:
        return ()

    def workers(self) -> Sequence[WorkerStatus]:
        return ()


class PatientExecutor:
    """Each command runs until it is stopped."""

    def __init__(self) -> None:
        self._stopped = asyncio.Event()

    async def run(self, spec: CommandSpec, on_started: Callable[[ProcessIdentity], None]) -> Outcome:
        await self._stopped.wait()
        return Outcome(end_cause=outcome.of_command(15).end_cause, failure=outcome.FailureClass.HANDLER, stopped=True)

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> None:
        self._stopped.set()

    def job_of(self, pid: int) -> None: ...


@dataclass
class Heart:
    clock: MovedClock
    store: SqliteStore
    changes: Changes

    async def insert(self, **fields: Any) -> None:
        await self.store.insert([new_job(self.clock.now, **fields)], durable=False)

    async def until(self, condition: Callable[[Job], bool]) -> Job:
        """Wait until the one job meets the condition."""
        with self.changes.watch(JOB_ID) as watch:
            while True:
                job = await self.store.get(JOB_ID)
                assert job is not None
                if condition(job):
                    return job
                assert await watch.changed(20), f"still {job.state}"


@asynccontextmanager
async def beating(home: Path, executor: Executor) -> AsyncIterator[Heart]:
    home.mkdir(exist_ok=True)
    clock, changes = MovedClock(), Changes()
    store = await open_store(home / "meta.db", on_commit=changes.publish, now=clock.now_ms, fatal=_raise)

    def start(job: Job) -> None:
        attempts.start(job)
        expiry.on_start(job)

    background = Background()

    def deadline_passed(job_id: str, claim_no: int) -> None:
        background.spawn(stop_at_deadline(job_id), f"stopping attempt {claim_no}")

    async def stop_at_deadline(job_id: str) -> None:
        selector = StopSelector(job_id=job_id)
        stopped = await store.stop(StopRequest(selector=selector, reason=StopReason.DEADLINE, now=clock.now))
        for running in stopped.stopping:
            attempts.stop(running)

    live, slots, workers = LiveAttempts(), Slots(), NoWorkers()
    dispatcher = Dispatcher(
        store,
        slots=slots,
        start=start,
        start_tasks=workers.start,
        tasks=workers,
        offers=Apps(store, workers, slots, read=list, wake=lambda: None),
        facts=_facts,
        clock=clock,
        node_id="n",
        max_processes=2,
        queue_concurrency=2,
        before_claim=lambda: None,
    )
    attempts = Attempts(
        store,
        executor,
        live=live,
        gate=CommandGate(PolicyFile(home / "commands.toml"), DEFAULTS, hold=dispatcher.hold_commands),
        floors=SandboxFloors(SandboxLevel.NONE),
        tokens=JobTokens(),
        defaults=DEFAULTS,
        clock=clock,
        jitter=draw_jitter,
        events=Events(),
        on_timeout=lambda job: None,
        on_finishing=lambda job, result: dispatcher.release([job]),
        on_end=lambda job: None,
        evidence=lambda *_: None,
    )
    promoter, expiry = Promoter(store, clock), Expiry(store, live, clock, deadline_passed)
    for listener in (dispatcher.on_changes, promoter.on_changes, expiry.on_changes):
        changes.listen(listener)
    await promoter.start()
    await expiry.start()
    dispatcher.open(await store.queues())
    try:
        yield Heart(clock, store, changes)
    finally:
        dispatcher.close()
        await promoter.stop()
        await expiry.stop()
        await live.idle(10)
        await background.stop()
        await store.close()


def new_job(now: int, **fields: Any) -> NewJob:
    given: dict[str, Any] = {
        "job_id": JOB_ID,
        "queue": "q",
        "job_type": "t",
        "execution_mode": ExecutionMode.SUBPROCESS,
        "payload": '{"command":"false"}',
        "created_at": now,
        "on_interrupt": OnInterrupt.FAIL,
        "content_hash": b"x",
    }
    return NewJob(**{**given, **fields})


def _facts(job_id: str, claim_no: int) -> ClaimFacts:
    return ClaimFacts(daemon_epoch=1, boot_id="b", attempts_id="a", nonce=f"{job_id}.{claim_no}")


def _raise(error: BaseException) -> None:
    raise error
