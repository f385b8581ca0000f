"""The daemon's engine without its processes: real store, admission, dispatcher, timers and API, on a fake clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

import semtask
from semtask.api.access import OWNER
from semtask.api.methods import Caller, Responder
from semtask.engine.admission import Admission
from semtask.engine.changes import Changes
from semtask.engine.command_spec import CommandDefaults
from semtask.engine.janitor import Retention
from semtask.engine.lifecycle import Engine, Limits
from semtask.engine.operations import Operations
from semtask.engine.tailing import Tailing
from semtask.engine.throttle import NEVER
from semtask.executors.attempt_files import AttemptFiles
from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.base import CommandSpec, TaskEnd
from semtask.executors.output import LogFiles
from semtask.host.command_policy import PolicyFile
from semtask.host.probe import SystemProbe
from semtask.model.app import App
from semtask.model.identifiers import JobIds
from semtask.model.job import ClaimFacts, Job, ProcessIdentity, ProgressNote
from semtask.model.outcome import Outcome
from semtask.model.state import StopReason
from semtask.protocol.admin import StartDaemonParams
from semtask.protocol.frames import Ended, ProgressInfo
from semtask.store.sqlite import SqliteStore, open_store
from semtask.tasks.context import JobContext
from semtask.telemetry.events import Events
from semtask.testing.clock import FakeClock
from semtask.testing.workers import InlineWorkers
from semtask.workers.task_outcome import of_frame

_MAX_PAYLOAD_BYTES = 10 * 1024 * 1024
_RETRY_BASE_MS = 1000
_LOOK_S = 0.0005


class InlineEngine:
    """Everything here is called on the event loop that it was opened on."""

    def __init__(self, home: Path, store: SqliteStore, changes: Changes, clock: FakeClock, logs: LogFiles) -> None:
        self._store = store
        self._clock = clock
        self.home = str(home)
        self.artifacts_dir = str(home / "artifacts")
        self.workers = InlineWorkers(_facts(store.daemon_epoch))
        self._taking = asyncio.Lock()
        events = Events()
        self._engine = Engine(
            store=store,
            executor=_NoCommands(),
            workers=self.workers,
            read_apps=_no_apps,
            former=_NothingBefore(),
            log_watch=_NoLogWatch(),
            changes=changes,
            clock=clock,
            jitter=lambda: 1.0,  # retries come when their formula says
            events=events,
            defaults=CommandDefaults(env={}, working_dir="/", umask=0o022, home=str(home)),
            policy=PolicyFile(home / "commands.toml"),
            facts=_facts(store.daemon_epoch),
            node_id="test",
            # No process: commands stay QUEUED.
            limits=Limits(
                max_processes=0, queue_concurrency=1000, cpu_throttle_threshold=NEVER, recovery_window_ms=300_000
            ),
            probe=SystemProbe(clock.monotonic),
            reserves=[_EndlessDisk()],
            files=AttemptFiles(AttemptsDir(home / "attempts"), logs, self.artifacts_dir),
            retention=Retention(days=0, max_jobs=0, max_bytes=0),
        )
        self.workers.on_app = self._engine.apps.changed
        self.workers.on_ends = self._engine.tasks.ended
        self._responder = Responder(self._operations(changes, logs, events), version=semtask.__version__, events=events)

    def _operations(self, changes: Changes, logs: LogFiles, events: Events) -> Operations:
        engine, clock = self._engine, self._clock
        return Operations(
            store=self._store,
            dispatcher=engine.dispatcher,
            explain=engine.explain,
            apps=engine.apps,
            slots=engine.slots,
            changes=changes,
            admission=Admission(
                new_id=JobIds(clock.now_ms, secrets.token_bytes).new,
                now_ms=clock.now_ms,
                max_payload_bytes=_MAX_PAYLOAD_BYTES,
                retry_base_delay_ms=_RETRY_BASE_MS,
                tasks=engine.apps,
            ),
            gate=engine.gate,
            floors=engine.floors,
            tailing=Tailing(self._store, logs, changes, clock, engine.waits),
            waits=engine.waits,
            start_daemon=_no_daemon,
            load=engine.load,
            disk=engine.disk,
            janitor=engine.janitor,
            stop_running=engine.stop_running,
            clock=clock,
            events=events,
            artifacts_dir=self.artifacts_dir,
            home=self.home,
            version=semtask.__version__,
            pid=os.getpid(),
            cpu_count=os.cpu_count() or 1,
        )

    async def start(self) -> None:
        await self._engine.start()

    async def stop(self) -> None:
        at_once = asyncio.Event()
        at_once.set()
        await self._engine.stop(wait_s=0, at_once=at_once)

    # --- what a test does -------------------------------------------------------------------------------------------

    async def answer(self, body: bytes) -> bytes:
        """The response to a JSON-RPC request."""
        answer = await self._responder.answer(body, Caller(), OWNER)
        assert answer.body is not None, "a request has a response"
        return answer.body

    async def move(self, ms: int) -> None:
        """Let time pass, and what falls due: promotions, ttl, deadlines."""
        self._clock.move(ms)
        await self._clock.settled()

    async def take(self) -> Job | None:
        """Claim the next job that could be run now; None if there is none. What is due is promoted before."""
        async with self._taking:
            await self._clock.settled()
            wanted = self.workers.want()
            self._engine.dispatcher.room_changed()
            await self._engine.settled()
            if wanted.done():
                return wanted.result()
            wanted.cancel()
            return None

    async def next_due(self) -> int | None:
        """When the next SCHEDULED job may run, epoch ms."""
        await self._clock.settled()
        return await self._store.next_due()

    async def end(self, job: Job, ended: Ended, *, told_to_stop: bool) -> None:
        """Store how a job that was taken has ended."""
        outcome = of_frame(ended, told_to_stop=told_to_stop)
        self.workers.forget(job)
        self._engine.tasks.ended([TaskEnd(job, outcome, ended.ran_us / 1e6)])
        while (job.job_id, job.claim_no) in self._engine.live:  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(_LOOK_S)

    def progress(self, job: JobContext, progress: ProgressInfo) -> None:
        text = msgspec.json.encode(progress).decode()
        self._engine.tasks.progress([ProgressNote(job_id=job.job_id, claim_no=job.claim_no, progress=text)])

    def blocked(self, job: JobContext, on: Sequence[str]) -> None:
        self._engine.waits.told((job.job_id, job.claim_no), on)


@contextlib.asynccontextmanager
async def inline_engine(home: Path, now_ms: int) -> AsyncIterator[InlineEngine]:
    """An engine of its own in an empty folder."""
    clock, changes = FakeClock(now_ms), Changes()
    store = await open_store(home / "meta.db", on_commit=changes.publish, now=clock.now_ms, fatal=_raise)
    logs = LogFiles(home / "logs" / "jobs")
    try:
        engine = InlineEngine(home, store, changes, clock, logs)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()
    finally:
        logs.close()
        await store.close()


def _facts(daemon_epoch: int) -> Callable[[str, int], ClaimFacts]:
    def facts(worker: str, _claim_no: int) -> ClaimFacts:
        return ClaimFacts(daemon_epoch=daemon_epoch, boot_id="test", attempts_id="test", nonce=worker, worker=worker)

    return facts


def _no_apps() -> Sequence[App]:
    return ()


async def _no_daemon(_params: StartDaemonParams) -> NoReturn:
    raise AssertionError("nothing of an inline app runs in a job of a daemon")


def _raise(error: BaseException) -> None:
    raise error


class _NoCommands:
    """No command is ever claimed."""

    async def run(self, spec: CommandSpec, on_started: Callable[[ProcessIdentity], None]) -> Outcome:
        raise AssertionError("no command runs here")

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> NoReturn:
        raise AssertionError("no command runs here")

    def job_of(self, pid: int) -> None: ...

    def forget(self, job_id: str, claim_no: int) -> None:
        raise AssertionError("no command runs here")


class _NothingBefore:
    """The home is new."""

    async def judge(self, job: Job) -> Outcome | None:
        raise AssertionError("nothing ran before")

    async def wait_unlocked(self, job: Job) -> None:
        raise AssertionError("nothing ran before")

    async def remove_abandoned(self) -> None: ...


class _NoLogWatch:
    def add(self, job_id: str, claim_no: int) -> None: ...
    def remove(self, job_id: str, claim_no: int) -> None: ...


class _EndlessDisk:
    size = 0

    def free(self) -> int:
        return 1 << 60

    def total(self) -> int:
        return 1 << 61

    def fill(self, spare: int) -> bool:
        return True

    def release(self) -> bool:
        return False
