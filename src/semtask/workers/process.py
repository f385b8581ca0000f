"""One worker as a process: its folder, its shim, its link and its log, from the spawn to the verified end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from semtask.config.environment import ENV_ATTEMPT, ENV_JOB_ID
from semtask.executors import evidence
from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.output import LogFiles
from semtask.executors.shim_end import Lost, ShimEnd
from semtask.executors.spawner import NotSpawnedError, SpawnedShim, Spawner, SpawnRequest
from semtask.host import identity
from semtask.host.filesystem import punch_hole
from semtask.launch import control
from semtask.launch.folder import Stop
from semtask.launch.pump import Pump
from semtask.model.app import App
from semtask.model.job import ProcessIdentity
from semtask.protocol import frames
from semtask.protocol.frames import Failed, Hello, ProtocolError, ToDaemon
from semtask.workers import death as worker_death
from semtask.workers.death import Death
from semtask.workers.link import WorkerLink

log = logging.getLogger("semtask.workers")

WORKER_PREFIX = "worker-"  # tells their folders from those of jobs
CLAIM_NO = 1  # their folders are named as those of a first claim
MARK = "current"
LOG = "log"

_GRACE_MS = 2000  # for what a worker runs when the daemon dies
_LEAVE_S = 5.0  # for a worker that was asked to leave, or that has closed its socket
_LOG_BYTES = 4 * 1024 * 1024  # of its own log: what is older goes
_LEARN_S = 0.02


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What workers are started with. `env` is their environment but for SEMANTICA_ATTEMPT, `version` that of semtask.

    `umask` is the one that the daemon was started with. Of the limits 0 is none.
    """

    env: Mapping[str, str]
    umask: int
    artifacts_dir: str
    version: str
    start_timeout_ms: int = 60_000
    idle_ms: int = 60_000
    async_jobs: int = 100
    max_jobs: int = 50_000
    max_memory_bytes: int = 1 << 30
    inline_result_bytes: int = 256 * 1024
    max_result_bytes: int = 64 * 1024 * 1024
    max_artifact_bytes: int = 1 << 30
    max_job_artifact_bytes: int = 4 << 30
    max_job_artifacts: int = 1000
    kill_patience_s: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Site:
    """What all workers of a daemon share. `count` adds to a persistent counter; `now_ms` is the wall clock."""

    attempts: AttemptsDir
    spawner: Spawner
    logs: LogFiles
    count: Callable[[str, int], None]
    now_ms: Callable[[], int]
    settings: WorkerSettings


class Owner(Protocol):
    """Who hears of a worker, on the event loop."""

    def on_hello(self, hello: Hello) -> None: ...
    def on_frames(self, messages: Sequence[ToDaemon]) -> None: ...
    def on_closing(self) -> None:
        """It will take nothing more: it has closed its socket, or is being killed."""
        ...

    def on_stuck(self) -> None:
        """Processes of it survive SIGKILL."""
        ...


class _Kill(NamedTuple):
    why: str
    broken: bool  # it broke the protocol


class WorkerProcess:
    """`name` is the name of its folder, and its nonce: it is never used again."""

    def __init__(self, site: Site, app: App, worker_id: str, owner: Owner) -> None:
        self._site = site
        self._app = app
        self._owner = owner
        self.name = f"{worker_id}.{CLAIM_NO}"
        self.link = WorkerLink(self._on_frames, self._on_end)
        self.hello: Hello | None = None
        self._about = {"worker": self.name, "app": app.name}
        self._folder = site.attempts.attempt(worker_id, CLAIM_NO)
        self._log_fd = -1
        self._log_start = self._log_size = self._log_freed = 0
        self._output: Pump | None = None  # from its descriptors 1 and 2 to its log; the shim holds it, too
        self._shim: SpawnedShim | None = None
        self._identity: ProcessIdentity | None = None
        self._failed: Failed | None = None
        self._killed: _Kill | None = None
        self._ended = False
        self._is_stuck = False
        self._patience: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def pid(self) -> int | None:
        return self._identity.pid if self._identity is not None else self.hello.pid if self.hello is not None else None

    @property
    def mark(self) -> int:
        """The number of the call whose code ran last; 0 if none did."""
        return self._marks[0]

    @property
    def _marks(self) -> tuple[int, int]:
        """What `frames.Setup.mark_path` says."""
        try:
            with open(os.path.join(self._folder.path, MARK), "rb") as file:
                return int.from_bytes(file.read(8), "little"), int.from_bytes(file.read(8), "little")
        except FileNotFoundError:
            return 0, 0

    async def run(self) -> Death:
        """Start it; return when it has ended, nothing of it is left, and all that it sent was passed on.

        `close` it then.
        """
        try:
            await self._spawn()
        except (NotSpawnedError, OSError) as error:
            return worker_death.not_started(f"no worker could be started: {error}")
        except ValueError as error:
            return worker_death.refused(self._app, str(error))
        end = await ShimEnd(
            self._site.spawner, self._folder, self.name, self._site.count, self._started, log, self._about
        ).wait(self._shim)
        self._ended = True
        self._cancel_timers()
        if isinstance(end, Lost) and self._output is not None:
            # In a thread: a file system that is frozen or busy must not stop the daemon.
            await asyncio.to_thread(self._output.drain)
        self.link.drain()
        return self._death(end)

    @property
    def log_size(self) -> int:
        """Of its own log, in bytes."""
        return os.fstat(self._log_fd).st_size if self._log_fd >= 0 else 0

    def interrupt(self) -> None:
        """Have its main thread read what the daemon has sent."""
        self._signal(signal.SIGUSR1)

    def show_stack(self) -> bool:
        """Have it write where it is to its own log, even if it is stuck in C code. False if it was not told to."""
        return self._signal(signal.SIGUSR2)

    def _signal(self, number: int) -> bool:
        try:
            if self._identity is None:
                started = self._folder.started()
                self._identity = identity.from_mark(started.command) if started is not None else None
            return self._identity is not None and identity.send_signal(self._identity, number)
        except OSError as error:  # no descriptor to do it with; the kill, which needs none, must not fail with it
            log.warning("a worker cannot be signalled now: %s", error, extra=self._about)
            return False

    def kill(self, why: str, *, broken: bool = False) -> None:
        """End it with all its processes, immediately. The first reason stays."""
        if self._ended or self._killed is not None:
            return
        self._killed = _Kill(why, broken)
        self._owner.on_closing()
        if self._patience is not None:
            self._patience.cancel()
        # A daemon that was stopped for a while learns of an end after the time that has passed: hence not immediately.
        patience_s = self._site.settings.kill_patience_s
        self._alarm = self._loop.call_later(patience_s, self._loop.call_later, _LEARN_S, self._stuck)
        self._convey_kill()

    def leave(self) -> None:
        """It has no jobs and gets no more: let it go."""
        self.link.leave()
        self._be_patient(_LEAVE_S, "it did not leave when it was asked to")

    def end_of_jobs(self) -> bool:
        """What it writes to its log from now on is of other jobs. False: its log is too long, and cannot be shortened.

        One step behind: the next job may have brought it down before this process heard of the end of the last one.
        """
        if self._ended:
            return True
        self._log_start, self._log_size = self._log_size, self.log_size
        return self._log_start - self._log_freed <= _LOG_BYTES or self._free_log()

    def _free_log(self) -> bool:
        """Give back the space of what former jobs wrote; whether the file system can. Offsets stay as they are."""
        begin = self._log_begin()
        if begin <= self._log_freed:  # one job has written all of it
            return True
        try:
            punch_hole(self._log_fd, self._log_freed, begin - self._log_freed)
        except OSError as error:
            log.info("the log of a worker cannot be shortened, the worker is replaced: %s", error, extra=self._about)
            return False
        self._log_freed = begin
        return True

    # --- the start -------------------------------------------------------------------------------------------------

    async def _spawn(self) -> None:
        settings = self._site.settings
        specification = control.encode_specification(
            self._app.directory,
            [self._app.python, "-m", "semtask.worker"],
            {**{k: v for k, v in settings.env.items() if k != ENV_JOB_ID}, ENV_ATTEMPT: self.name},
        )
        fds: list[int] = []
        try:
            self._folder.create()
            fds.append(self._folder.open())
            self._log_fd = _create(LOG, fds[0])
            source, stream = os.pipe2(os.O_CLOEXEC)
            fds.append(stream)
            self._output = Pump(source, self._log_fd)
            mark = _create(MARK, fds[0])
            fds.append(mark)
            os.write(mark, bytes(16))
            fds.append(control.sealed("semtask-worker", specification))
            self._shim = await self._site.spawner.spawn(
                SpawnRequest(
                    folder=self._folder,
                    specification=fds[-1],
                    folder_fd=fds[0],
                    outputs=(stream, source, self._log_fd),
                    umask=settings.umask,
                    grace_ms=_GRACE_MS,
                    on_command=self._started,
                    on_stuck=self._stuck,
                    about=self._about,
                    passed=self.link.passed,
                )
            )
        finally:
            for fd in fds:
                os.close(fd)
        self.link.handed_over()
        if self._killed is not None:  # while the launcher was at work
            self._convey_kill()
        elif self._shim is not None:
            self.link.send(self._setup(self._shim.pid))
            self._be_patient(
                settings.start_timeout_ms / 1000,
                f"it did not say hello within {settings.start_timeout_ms / 1000:g} s (worker_start_timeout_ms)",
            )

    def _setup(self, shim_pid: int) -> frames.Setup:
        settings = self._site.settings
        return frames.Setup(
            protocol=frames.PROTOCOL,
            app=self._app.module,
            worker=self.name,
            shim_pid=shim_pid,
            logs_dir=self._site.logs.folder,
            artifacts_dir=settings.artifacts_dir,
            mark_path=os.path.join(self._folder.path, MARK),
            log_path=os.path.join(self._folder.path, LOG),
            inline_result_bytes=settings.inline_result_bytes,
            max_result_bytes=settings.max_result_bytes,
            max_artifact_bytes=settings.max_artifact_bytes,
            max_job_artifact_bytes=settings.max_job_artifact_bytes,
            max_job_artifacts=settings.max_job_artifacts,
            max_jobs=settings.max_jobs,
            max_memory_bytes=settings.max_memory_bytes,
            has_stream=True,
        )

    def _started(self, command: ProcessIdentity) -> None:
        self._identity = command

    # --- what it says ------------------------------------------------------------------------------------------------

    def _on_frames(self, messages: Sequence[ToDaemon]) -> None:
        if self.hello is None:
            messages = self._first(messages)
        if messages:
            self._owner.on_frames(messages)

    def _first(self, messages: Sequence[ToDaemon]) -> Sequence[ToDaemon]:
        first, *others = messages
        match first:
            case Hello(protocol=frames.PROTOCOL):
                if self._patience is not None and self._killed is None:
                    self._patience.cancel()
                self.hello = first
                self._owner.on_hello(first)
                return others
            case Hello():
                self._failed = Failed(error=worker_death.other_version(self._app, first, self._site.settings.version))
                self.kill(self._failed.error)
            case Failed():
                self._failed = first
                self._owner.on_closing()
            case _:
                self.kill(f"it sent {type(first).__name__} before Hello", broken=True)
        return ()

    def _on_end(self, error: ProtocolError | None) -> None:
        if error is not None:
            self.kill(str(error), broken=True)
            return
        self._owner.on_closing()
        self._be_patient(_LEAVE_S, "it closed its connection to the daemon and went on")

    def _stuck(self) -> None:
        if not self._ended and not self._is_stuck:
            self._is_stuck = True
            self._owner.on_stuck()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _be_patient(self, seconds: float, why: str) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if not self._ended:
            self._patience = self._loop.call_later(seconds, self.kill, why)

    def _convey_kill(self) -> None:
        if self._shim is None:
            return
        try:
            self._folder.ask_to_stop(Stop("killed", 0))
        except OSError as error:
            text = "cannot write %s/stop: %s; the worker is killed %d ms later"
            log.warning(text, self._folder.path, error, _GRACE_MS, extra=self._about)
        self._shim.terminate()

    def _death(self, end: worker_death.End) -> Death:
        path, start = os.path.join(self._folder.path, LOG), self._log_begin()
        seen = worker_death.Facts(
            app=self._app,
            end=end,
            hello=self.hello is not None,
            failed=self._failed,
            killed=None if self._killed is None else self._killed.why,
            broken=self._killed is not None and self._killed.broken,
            tail=evidence.tail(path, start),
        )
        return worker_death.judge(seen)._replace(output=evidence.output(path, start))

    def _log_begin(self) -> int:
        """From where on its log is of the job that ran at its death."""
        size = self.log_size
        return min(self._marks[1] or self._log_start, size)

    def _cancel_timers(self) -> None:
        for timer in (self._patience, self._alarm):
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Remove what it had, after its end."""
        self._ended = True
        self._cancel_timers()
        self.link.close()
        if self._output is not None:
            self._output.close()
            self._output = None
        elif self._log_fd >= 0:
            os.close(self._log_fd)
        self._log_fd = -1
        try:
            if self._folder.exists():
                self._folder.remove()
        except OSError as error:
            log.warning("the folder of a worker stays: %s", error, extra=self._about)


def _create(name: str, folder: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC  # not O_APPEND, which splice refuses
    return os.open(name, flags, 0o600, dir_fd=folder)
