"""The daemon: opens everything in the one right order, serves until it is told to stop, and closes it in reverse.

It runs no user code and spawns no job itself; see `executors/launcher.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw

import semtask
from semtask.api.http import RpcServer
from semtask.config import Settings, inherited
from semtask.engine.admission import Admission
from semtask.engine.attempt import CommandDefaults, draw_jitter
from semtask.engine.changes import Changes
from semtask.engine.janitor import Retention
from semtask.engine.lifecycle import Engine, Limits
from semtask.engine.operations import Operations
from semtask.engine.reporting import Reporting
from semtask.engine.supervision import ServiceFailed, supervised
from semtask.engine.tailing import Tailing
from semtask.engine.watchdog import LoopWatchdog
from semtask.errors import EXIT_DISK_FAILED, StartupError, Throttled
from semtask.executors.attempt_files import AttemptFiles
from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.base import AppStatus, TaskEnd
from semtask.executors.former_attempts import FormerAttempts
from semtask.executors.in_process import InProcessExecutor
from semtask.executors.output import LogCap, LogFiles
from semtask.executors.spawner import Spawner
from semtask.executors.sub_process import SubprocessExecutor
from semtask.executors.worker_process import WorkerSettings
from semtask.host import procfs
from semtask.host.app_list import read_apps
from semtask.host.backups import way_back
from semtask.host.ballast import Ballast
from semtask.host.clocks import SystemClock
from semtask.host.command_policy import PolicyFile
from semtask.host.ownership import owned_folders
from semtask.host.presence import Presence
from semtask.host.probe import SystemProbe
from semtask.host.randomness import RandomPool
from semtask.host.systemd import Service
from semtask.model.disk import DiskState
from semtask.model.identifiers import JobIds
from semtask.model.job import ClaimFacts, ProgressNote
from semtask.model.sandbox import SandboxLevel
from semtask.store.sqlite import SqliteStore, open_store
from semtask.store.sqlite_faults import DamageMet
from semtask.store.sqlite_file import damaged_at_start
from semtask.store.writer import DiskFailed
from semtask.telemetry.counters import LOOP_STALLS, ZOMBIES_CLEANED
from semtask.telemetry.events import Events
from semtask.telemetry.logs import configure_logging, log_attempts
from semtask.telemetry.metrics import Metrics

log = logging.getLogger("semtask.daemon")

# What stopping may take beside the time that running jobs get: kills, and a slow disk.
STOPPING_S = 90
EXIT_FENCED = 70
EXIT_SERVICE_FAILED = 71
EXIT_HOME_LOST = 72
PRESENCE_S = 3.0
# The daemon makes few cycles; looking for them as often as Python does by default costs more than it finds.
GC_THRESHOLDS = (20_000, 20, 20)


def main(settings: Settings, *, ready_fd: int | None = None, detached: bool = False, life_fd: int | None = None) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT. Returns its exit code.

    `ready_fd` gets one byte when the sockets are open. `detached` is for a daemon that a client starts: it begins with
    all signals at their defaults and none blocked, whatever shell or nohup the client was called from. `life_fd` makes
    it private: it ends at once when that becomes readable, and does not run the apps of the user's settings.
    """
    if detached:
        _reset_signals()
    if life_fd is not None:
        settings = dataclasses.replace(settings, user_file=None)
    inherited_umask = os.umask(0o077)
    try:
        with owned_folders(settings):
            configure_logging(settings, foreground=not detached)
            return asyncio.run(_Daemon(settings, inherited_umask).run(ready_fd, life_fd))
    except (StartupError, DamageMet) as error:
        refused = error if isinstance(error, StartupError) else damaged_at_start(settings.database, error.message)
        print(f"semtask: {refused.message}", file=sys.stderr)  # noqa: T201
        return refused.exit_code


def _reset_signals() -> None:
    # SIGPIPE and SIGXFSZ stay ignored, as Python has them: a client that hangs up must not end the daemon.
    kept = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals() - kept:
        with contextlib.suppress(OSError, ValueError):  # glibc keeps two of them for itself
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class _Daemon:
    def __init__(self, settings: Settings, inherited_umask: int) -> None:
        self._settings = settings
        self._inherited_umask = inherited_umask
        self._clock = SystemClock()
        self._events = Events()
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._exit_code = 0
        self._service = Service(os.environ)
        self._new_id = JobIds(self._clock.now_ms, RandomPool()).new

    async def run(self, ready_fd: int | None, life_fd: int | None) -> int:
        self._handle_signals()
        if life_fd is not None:
            asyncio.get_running_loop().add_reader(life_fd, self._owner_gone, life_fd)
        async with contextlib.AsyncExitStack() as stack:
            asyncio.get_running_loop().set_exception_handler(self._crashed)
            await self._serve(stack, ready_fd)
        log.info("stopped")
        return self._exit_code

    async def _serve(self, stack: contextlib.AsyncExitStack, ready_fd: int | None) -> None:
        """Open the parts from the bottom up, serve, and stop the engine; the stack closes the parts in reverse."""
        settings = self._settings
        changes = Changes()
        store = await open_store(
            settings.database, on_commit=changes.publish, now=self._clock.now_ms, fatal=self._fatal
        )
        stack.push_async_callback(store.close)
        logs = LogFiles(settings.logs_dir / "jobs")
        stack.callback(logs.close)
        engine = await self._open_engine(stack, store, changes, logs)
        operations = self._operations(engine, store, changes, logs)
        server = self._server(engine, store, changes, operations)
        await engine.recover()
        await server.start()
        stack.push_async_callback(server.close)
        places = (settings.home, settings.database, settings.run_dir, settings.socket)
        await stack.enter_async_context(_background(self._watch_home(Presence(places))))
        await engine.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        _announce(ready_fd)
        self._be_watched(stack, engine)
        log.info("ready: pid %d, home %s", os.getpid(), settings.home)
        await self._stopping.wait()
        log.info("stopping")
        self._service.stopping(settings.shutdown_grace_ms / 1000 + STOPPING_S)
        operations.accepting = False
        server.drain()
        await engine.stop(wait_s=settings.shutdown_grace_ms / 1000, at_once=self._at_once)

    async def _open_engine(
        self, stack: contextlib.AsyncExitStack, store: SqliteStore, changes: Changes, logs: LogFiles
    ) -> Engine:
        settings, clock = self._settings, self._clock
        upcalls = _Upcalls()
        attempts_dir = AttemptsDir(settings.attempts_dir)
        spawner = Spawner(attempts_dir, lambda ended: upcalls.count(ZOMBIES_CLEANED, ended))
        await spawner.start()
        stack.push_async_callback(spawner.close)
        cap = LogCap(logs, settings.log_max_bytes, upcalls.log_limit)
        await stack.enter_async_context(_background(supervised("the cap of logs", cap.run)))
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
            former=FormerAttempts(attempts_dir, upcalls.count),
            log_watch=cap,
            changes=changes,
            clock=clock,
            jitter=draw_jitter,
            events=self._events,
            defaults=CommandDefaults(
                env=env,
                working_dir=os.environ.get("HOME") or str(Path.home()),
                umask=self._inherited_umask,
                client_env=self._client_env,
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
            env={**env, **self._client_env},
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
        )

    @property
    def _client_env(self) -> dict[str, str]:
        """For jobs that enqueue: they speak to this daemon and start no other one."""
        return {"SEMANTICA_HOME": str(self._settings.home), "SEMANTICA_AUTOSTART": "off"}

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
            tailing=Tailing(store, logs, changes, clock),
            load=engine.load,
            disk=engine.disk,
            janitor=engine.janitor,
            stop_running=engine.stop_running,
            clock=clock,
            events=self._events,
            artifacts_dir=str(settings.artifacts_dir),
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
            short=engine.dispatcher.back_off,
            events=self._events,
            version=semtask.__version__,
        )

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)

    def _asked_to_stop(self) -> None:
        """The first signal lets running jobs go on for a while; the second one stops them at once."""
        if self._stopping.is_set():
            self._at_once.set()
        self._stopping.set()

    def _be_watched(self, stack: contextlib.AsyncExitStack, engine: Engine) -> None:
        """By a thread of our own, and by systemd where it started us."""
        watchdog = LoopWatchdog(lambda: engine.count(LOOP_STALLS, 1))
        watchdog.start()
        stack.callback(watchdog.stop)
        self._service.ready(f"serving {self._settings.home}")
        self._give_sign()

    def _give_sign(self) -> None:
        if self._service.sign_every_s is not None:
            self._service.alive()
            asyncio.get_running_loop().call_later(self._service.sign_every_s, self._give_sign)

    def _crashed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), ServiceFailed):
            self._give_up(str(context["exception"]), EXIT_SERVICE_FAILED)
        else:
            loop.default_exception_handler(context)

    def _owner_gone(self, life_fd: int) -> None:
        log.warning("the program that this daemon belongs to has ended")
        asyncio.get_running_loop().remove_reader(life_fd)
        self._stopping.set()
        self._at_once.set()

    async def _watch_home(self, presence: Presence) -> None:
        """End when something of the home is gone for good: nobody could reach this daemon, or nothing is stored."""
        before = None
        while True:
            await asyncio.sleep(PRESENCE_S)
            try:
                lost = presence.lost()
            except OSError as error:
                log.warning("the home cannot be looked at: %s", error)
                continue
            if lost and before:
                self._give_up(f"{lost}; start semtask again when its home is in order", EXIT_HOME_LOST)
                return
            before = lost

    def _fatal(self, error: BaseException) -> None:
        """The database is no longer ours, or the disk with it has failed."""
        if isinstance(error, DiskFailed):
            way = way_back(self._settings.database)
            why = f"the disk fails, and did so at every try: {error}. When it is in order, start semtask again; {way}"
            self._give_up(why, EXIT_DISK_FAILED)
        else:
            self._give_up(str(error), EXIT_FENCED)

    def _give_up(self, why: str, exit_code: int) -> None:
        """End, and touch nothing."""
        log.critical("cannot go on: %s", why)
        self._exit_code = exit_code
        self._stopping.set()
        self._at_once.set()


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
        self.engine.dispatcher.block((job_id, claim_no), blocked=bool(on))

    def task_kill_failed(self, job_id: str, claim_no: int) -> None:
        self.engine.kill_failed(job_id, claim_no)

    def room_changed(self) -> None:
        self.engine.dispatcher.room_changed()

    def app_changed(self, status: AppStatus) -> None:
        self.engine.apps.changed(status)


@contextlib.asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


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


def _announce(ready_fd: int | None) -> None:
    if ready_fd is not None:
        os.write(ready_fd, b"1")
        os.close(ready_fd)


def _claim_facts(daemon_epoch: int, attempts_id: str) -> Callable[[str, int], ClaimFacts]:
    boot_id = procfs.boot_id()

    def facts(job_id: str, claim_no: int) -> ClaimFacts:
        # The random part keeps a copied home from taking our processes for its own.
        nonce = f"{job_id}.{claim_no}.{secrets.token_hex(8)}"
        return ClaimFacts(daemon_epoch=daemon_epoch, boot_id=boot_id, attempts_id=attempts_id, nonce=nonce)

    return facts
