"""What the daemon is made of: each part with what it needs, from the bottom up. No other place knows them all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import apsw

import semtask
from semtask.api.http import RpcServer
from semtask.config.environment import ENV_JOB_HOME, inherited
from semtask.config.settings import Settings
from semtask.daemon.other_daemons import OtherDaemons
from semtask.engine.admission import Admission
from semtask.engine.attempt import draw_jitter
from semtask.engine.background import background
from semtask.engine.changes import Changes
from semtask.engine.command_spec import CommandDefaults
from semtask.engine.janitor import Retention
from semtask.engine.lifecycle import Engine, Limits
from semtask.engine.operations import Operations
from semtask.engine.reporting import Reporting
from semtask.engine.supervision import supervised
from semtask.engine.tailing import Tailing
from semtask.errors import Throttled
from semtask.executors.attempt_files import AttemptFiles
from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.base import AppStatus, TaskEnd
from semtask.executors.former_attempts import FormerAttempts
from semtask.executors.output import LogCap, LogFiles
from semtask.executors.spawner import Spawner
from semtask.executors.sub_process import SubprocessExecutor
from semtask.host import procfs
from semtask.host.app_list import read_apps
from semtask.host.ballast import Ballast
from semtask.host.clocks import SystemClock
from semtask.host.command_policy import PolicyFile
from semtask.host.probe import SystemProbe
from semtask.host.randomness import RandomPool
from semtask.model.disk import DiskState
from semtask.model.identifiers import JobIds
from semtask.model.job import ClaimFacts, ProgressNote
from semtask.model.sandbox import SandboxLevel
from semtask.store.sqlite import SqliteStore, open_store
from semtask.telemetry.counters import ZOMBIES_CLEANED
from semtask.telemetry.events import Events
from semtask.telemetry.logs import log_attempts
from semtask.telemetry.metrics import Metrics
from semtask.workers.former import FormerWorkers
from semtask.workers.in_process import InProcessExecutor
from semtask.workers.process import WorkerSettings


class Parts(NamedTuple):
    """What a running daemon speaks to; the rest is behind them."""

    engine: Engine
    operations: Operations
    server: RpcServer


class Composition:
    """Makes the parts of a daemon of these settings. `inherited_umask` is the one that it was started with."""

    def __init__(self, settings: Settings, inherited_umask: int) -> None:
        self._settings = settings
        self._inherited_umask = inherited_umask
        self._clock = SystemClock()
        self._events = Events()
        self._new_id = JobIds(self._clock.now_ms, RandomPool()).new

    async def open(self, stack: contextlib.AsyncExitStack, fatal: Callable[[BaseException], None]) -> Parts:
        """Open the store and what runs jobs, which `stack` closes in reverse; nothing is served or claimed yet.

        `fatal` is told why the store can never write again. Raises StartupError, or DamageMet.
        """
        settings = self._settings
        changes = Changes()
        store = await open_store(settings.database, on_commit=changes.publish, now=self._clock.now_ms, fatal=fatal)
        stack.push_async_callback(store.close)
        logs = LogFiles(settings.logs_dir / "jobs")
        stack.callback(logs.close)
        engine = await self._open_engine(stack, store, changes, logs)
        operations = self._operations(engine, store, changes, logs)
        return Parts(engine, operations, self._server(engine, store, changes, operations))

    async def _open_engine(
        self, stack: contextlib.AsyncExitStack, store: SqliteStore, changes: Changes, logs: LogFiles
    ) -> Engine:
        settings, clock = self._settings, self._clock
        upcalls = _Upcalls()
        attempts_dir = AttemptsDir(settings.attempts_dir)
        spawner = Spawner(attempts_dir, lambda ended: upcalls.count(ZOMBIES_CLEANED, ended), str(settings.home))
        await spawner.start()
        stack.push_async_callback(spawner.close)
        cap = LogCap(logs, settings.log_max_bytes, upcalls.log_limit)
        await stack.enter_async_context(background(supervised("the cap of logs", cap.run)))
        env = inherited(os.environ, settings.env_allowlist)
        workers = InProcessExecutor(
            attempts_dir,
            spawner,
            logs,
            upcalls,
            upcalls.count,
            settings=self._worker_settings(env),
            daemon_epoch=store.daemon_epoch,
            new_id=self._new_id,
            now_ms=clock.now_ms,
        )
        stack.push_async_callback(workers.close)
        self._other_daemons = OtherDaemons(spawner.child_of_another_kind)
        upcalls.engine = Engine(
            store=store,
            executor=SubprocessExecutor(
                attempts_dir,
                spawner,
                logs.open,
                upcalls.kill_failed,
                upcalls.count,
                protected=[str(path) for path in settings.protected],
                open_port=settings.tcp and settings.tcp_auth == "off",
            ),
            workers=workers,
            read_apps=lambda: read_apps(settings),
            former=FormerAttempts(attempts_dir, FormerWorkers(attempts_dir, upcalls.count), upcalls.count),
            log_watch=cap,
            changes=changes,
            clock=clock,
            jitter=draw_jitter,
            events=self._events,
            defaults=CommandDefaults(
                env=env,
                working_dir=os.environ.get("HOME") or str(Path.home()),
                umask=self._inherited_umask,
                home=str(settings.home),
            ),
            policy=PolicyFile(settings.command_policy_file, must=settings.command_policy is not None),
            facts=_claim_facts(store.daemon_epoch, attempts_dir.attempts_id),
            node_id=os.uname().nodename,
            limits=Limits(
                max_processes=settings.max_processes,
                queue_concurrency=settings.queue_concurrency,
                cpu_throttle_threshold=settings.cpu_throttle_threshold,
                recovery_window_ms=settings.recovery_window_ms,
                sandbox=SandboxLevel(settings.sandbox),
                disk_low_bytes=settings.disk_low_mb * 1024 * 1024,
            ),
            probe=SystemProbe(clock.monotonic),
            reserves=_reserves(settings),
            files=AttemptFiles(attempts_dir, logs, str(settings.artifacts_dir)),
            retention=Retention(
                days=settings.retention_days,
                max_jobs=settings.max_finished_jobs,
                max_bytes=settings.max_db_size_mb * 1024 * 1024,
            ),
        )
        return upcalls.engine

    def _worker_settings(self, env: Mapping[str, str]) -> WorkerSettings:
        settings = self._settings
        return WorkerSettings(
            # For tasks that enqueue: they speak to this daemon.
            env={**env, "SEMANTICA_HOME": str(settings.home), ENV_JOB_HOME: str(settings.home)},
            umask=self._inherited_umask,
            artifacts_dir=str(settings.artifacts_dir),
            version=semtask.__version__,
            start_timeout_ms=settings.worker_start_timeout_ms,
            idle_ms=settings.worker_idle_ms,
            async_jobs=settings.async_jobs_per_worker,
            max_jobs=settings.worker_max_jobs,
            max_memory_bytes=settings.worker_max_memory_mb * 1024 * 1024,
            inline_result_bytes=settings.inline_result_bytes,
            max_result_bytes=settings.max_result_bytes,
            max_artifact_bytes=settings.max_artifact_bytes,
            max_job_artifact_bytes=settings.max_job_artifact_bytes,
            max_job_artifacts=settings.max_job_artifacts,
        )

    def _operations(self, engine: Engine, store: SqliteStore, changes: Changes, logs: LogFiles) -> Operations:
        settings, clock = self._settings, self._clock
        return Operations(
            store=store,
            dispatcher=engine.dispatcher,
            explain=engine.explain,
            apps=engine.apps,
            slots=engine.slots,
            changes=changes,
            admission=Admission(
                new_id=self._new_id,
                now_ms=clock.now_ms,
                max_payload_bytes=settings.max_payload_bytes,
                retry_base_delay_ms=settings.retry_base_delay_ms,
                tasks=engine.apps,
            ),
            gate=engine.gate,
            floors=engine.floors,
            tailing=Tailing(store, logs, changes, clock, engine.waits),
            waits=engine.waits,
            load=engine.load,
            disk=engine.disk,
            janitor=engine.janitor,
            stop_running=engine.stop_running,
            start_daemon=self._other_daemons.start,
            clock=clock,
            events=self._events,
            artifacts_dir=str(settings.artifacts_dir),
            home=str(settings.home),
            version=semtask.__version__,
            pid=os.getpid(),
            cpu_count=os.cpu_count() or 1,
        )

    def _server(self, engine: Engine, store: SqliteStore, changes: Changes, operations: Operations) -> RpcServer:
        log_attempts(self._events)
        metrics = Metrics(version=semtask.__version__, sqlite=apsw.sqlite_lib_version())
        metrics.attach(self._events)
        reporting = Reporting(
            store,
            self._events,
            now_ms=self._clock.now_ms,
            count=engine.count,
            holds=lambda: engine.holds,
            wal_bytes=lambda: _size(f"{self._settings.database}-wal"),
            disk=engine.disk.view,
        )
        changes.listen(reporting.on_changes)

        async def ready() -> str | None:
            if not operations.accepting:
                raise Throttled("the daemon is stopping")
            if not engine.started:
                raise Throttled("the daemon is starting")
            await store.healthy()
            disk = engine.disk.view()
            if disk.state in {DiskState.FULL, DiskState.DEGRADED}:
                raise Throttled(f"the disk is {disk.state}: {disk.reason}")
            return disk.reason  # jobs that wait are run: this daemon has work to do

        async def scrape() -> bytes:
            # In a thread: a thousand series take tens of milliseconds.
            return await asyncio.to_thread(metrics.render, await reporting.levels())

        return RpcServer(
            self._settings,
            operations,
            grants=engine.job_tokens.find,
            ready=ready,
            metrics=scrape,
            short=engine.dispatcher.holds.back_off,
            events=self._events,
            version=semtask.__version__,
        )


class _Upcalls:
    """What executors and logs have to tell the engine, which is made of them and hence after them."""

    engine: Engine

    def kill_failed(self, job_id: str, claim_no: int) -> None:
        self.engine.kill_failed(job_id, claim_no)

    def log_limit(self, job_id: str, claim_no: int) -> None:
        self.engine.log_limit(job_id, claim_no)

    def count(self, name: str, by: int) -> None:
        self.engine.count(name, by)

    def tasks_ended(self, ends: Sequence[TaskEnd]) -> None:
        self.engine.tasks.ended(ends)

    def task_progress(self, notes: Sequence[ProgressNote]) -> None:
        self.engine.tasks.progress(notes)

    def task_blocked(self, job_id: str, claim_no: int, on: Sequence[str]) -> None:
        self.engine.waits.told((job_id, claim_no), on)

    def task_kill_failed(self, job_id: str, claim_no: int) -> None:
        self.engine.kill_failed(job_id, claim_no)

    def room_changed(self) -> None:
        self.engine.dispatcher.room_changed()

    def app_changed(self, status: AppStatus) -> None:
        self.engine.apps.changed(status)


def _reserves(settings: Settings) -> list[Ballast]:
    """One for each disk that is written to."""
    by_disk = {folder.stat().st_dev: folder for folder in (settings.database.parent, settings.home)}
    return [Ballast(folder) for folder in by_disk.values()]


def _size(path: str) -> int:
    """Bytes; 0 without a file."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _claim_facts(daemon_epoch: int, attempts_id: str) -> Callable[[str, int], ClaimFacts]:
    boot_id = procfs.boot_id()

    def facts(job_id: str, claim_no: int) -> ClaimFacts:
        # The random part keeps a copied home from taking our processes for its own.
        nonce = f"{job_id}.{claim_no}.{secrets.token_hex(8)}"
        return ClaimFacts(daemon_epoch=daemon_epoch, boot_id=boot_id, attempts_id=attempts_id, nonce=nonce)

    return facts
