"""The daemon's side of the launcher: start it, have it spawn shims, replace it when it dies.

The daemon forks nothing itself and never waits for "any child". It is a child subreaper, so that the shims of a
launcher that died become its own children: then it reaps and kills by named pid or pidfd, as the launcher did.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from semtask.config.environment import ENV_ATTEMPT
from semtask.errors import StartupError
from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.launcher_process import LauncherProcess
from semtask.host import identity, linux, procfs, tree
from semtask.host.procfs import Mark
from semtask.launch import control
from semtask.launch.folder import AttemptFolder
from semtask.model.job import ProcessIdentity

log = logging.getLogger("semtask.launcher")

_START_TIMEOUT_S = 30.0
_LEAVE_TIMEOUT_S = 10.0
_MAX_UNANSWERED = 32  # below what the socket can hold, so that a send never waits
_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0
_POLL_S = 0.005
_LOOK_AGAIN_S = 0.5


class NotSpawnedError(Exception):
    """Nothing of this attempt was started, and nothing will be."""


class NoRoomError(NotSpawnedError):
    """The machine had no room for another process."""


@dataclass(eq=False)
class SpawnRequest:
    """What a shim gets. The descriptors stay the caller's, who may close them when `spawn` has returned."""

    folder: AttemptFolder
    specification: int
    folder_fd: int
    outputs: tuple[int, ...]  # see `control`: pipes and logs
    umask: int
    grace_ms: int
    on_command: Callable[[ProcessIdentity], None]  # called at most once
    on_stuck: Callable[[], None]  # processes survive SIGKILL
    about: Mapping[str, object] = field(default_factory=dict)  # for the log: whose attempt it is
    passed: tuple[int, ...] = ()  # socket and tokens of a worker


@dataclass(eq=False)
class SpawnedShim:
    """A running shim. Give it back with `Spawner.release` when `ended()` has returned."""

    request: int
    pid: int
    pidfd: int
    parent: LauncherProcess | None  # None: adopted by the daemon

    def terminate(self) -> None:
        """Have it read its `stop` note. A shim that was stopped itself is continued."""
        for number in (signal.SIGTERM, signal.SIGCONT):
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return

    async def ended(self) -> None:
        await readable(self.pidfd)


async def readable(fd: int) -> None:
    """Wait until a descriptor is readable (for a pidfd: until the process has ended)."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.add_reader(fd, _fulfil, done)
    try:
        await done
    finally:
        loop.remove_reader(fd)


def _fulfil(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


class Spawner:
    """Spawns shims, through whichever launcher process is alive.

    `on_orphans` is told how many processes of lost shims were ended, whenever there were any.
    """

    def __init__(self, attempts: AttemptsDir, on_orphans: Callable[[int], None], home: str = "") -> None:
        self._attempts = attempts
        self._home = home
        self._on_orphans = on_orphans
        self._requests = itertools.count(1)
        self._process: LauncherProcess | None = None
        self._ready = asyncio.Event()
        self._closing = False
        self._watch: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(_MAX_UNANSWERED)
        self._shims: dict[int, SpawnedShim] = {}
        self._requested: dict[int, SpawnRequest] = {}
        self._unclear = 0  # spawns whose fate is being found out
        self._all_clear = asyncio.Event()
        self._all_clear.set()
        self._sweeping = asyncio.Lock()
        self._sweeps: set[asyncio.Task[None]] = set()
        self._notices = b""
        self._has_strangers = False  # children that this process did not start, or will be given
        self._expected = 0  # children that are just being started, and come from no shim
        self._kept: dict[int, int] = {}  # those that were: pid and start

    @contextmanager
    def child_of_another_kind(self) -> Iterator[Callable[[int], None]]:
        """Inside of it this process may get a child that comes from no shim. Call what it gives with the pid."""
        self._expected += 1
        try:
            yield self._keep
        finally:
            self._expected -= 1

    def _keep(self, pid: int) -> None:
        if (seen := procfs.stat(pid)) is not None:
            self._kept[pid] = seen.start_ticks

    async def start(self) -> None:
        """Start the launcher. Raises StartupError if it does not come up."""
        self._has_strangers = os.getpid() == 1 or bool(procfs.children(os.getpid()))
        linux.become_child_subreaper()
        self._attempts.empty_trash()  # of former daemons
        self._daemon_out, self._daemon_in = os.pipe()
        self._notices_out, self._notices_in = os.pipe()
        os.set_blocking(self._notices_out, False)
        os.set_blocking(self._notices_in, False)
        asyncio.get_running_loop().add_reader(self._notices_out, self._read_notices)
        try:
            await self._start_process()
        except (OSError, TimeoutError) as error:
            raise StartupError(
                f"the launcher of commands did not start ({sys.executable}): {error}; its own message is above"
            ) from error
        self._watch = asyncio.create_task(self._replace_when_dead(), name="launcher")

    async def spawn(self, request: SpawnRequest) -> SpawnedShim | None:
        """Have a shim run the attempt. None: its shim ran, and has ended already.

        Raises NotSpawnedError if nothing was started and nothing can be any more.
        """
        async with self._slots:
            number = next(self._requests)
            self._requested[number] = request
            self._unclear += 1
            self._all_clear.clear()
            try:
                shim = await self._spawn_or_adopt(number, request)
                if shim is None:
                    del self._requested[number]
                else:
                    self._shims[shim.pid] = shim
                return shim
            except BaseException:
                self._requested.pop(number, None)
                raise
            finally:
                self._unclear -= 1
                if not self._unclear:
                    self._all_clear.set()

    async def settle(self, shim: SpawnedShim | None) -> int | None:
        """Wait until nothing is left of shims that were lost; the wait status of this one, where it is known."""
        if shim is not None and shim.parent is not None and not shim.parent.dead.is_set():
            try:
                value, _ = await shim.parent.send(control.SETTLE, next(self._requests), shim.pid, 0)
                return None if value < 0 else value
            except OSError:
                log.warning("the launcher died while it ended the processes of a lost shim; the daemon goes on")
        status = None if shim is None else _reap(shim)
        await self._end_adopted_orphans()
        return status

    def release(self, shim: SpawnedShim) -> None:
        """Forget a shim that has ended."""
        if shim.parent is None or shim.parent.dead.is_set():
            _reap(shim)
        if self._shims.get(shim.pid) is shim:  # its pid may be in use again
            del self._shims[shim.pid]
        self._requested.pop(shim.request, None)
        os.close(shim.pidfd)

    async def close(self) -> None:
        """Spawn nothing more; wait until the launcher, after its last shim, has left.

        What still runs is ended first, as if the daemon had died. Its shims go on with what cannot be ended in
        `_LEAVE_TIMEOUT_S`; the next daemon judges it.
        """
        if self._closing:
            return
        self._closing = True
        os.close(self._daemon_in)
        if self._process is not None:
            self._process.leave()
            try:
                async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                    await self._process.dead.wait()
            except TimeoutError:
                log.warning("the launcher (pid %d) stays: processes of a command survive SIGKILL", self._process.pid)
        tasks = [*self._sweeps, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        asyncio.get_running_loop().remove_reader(self._notices_out)
        for fd in (self._daemon_out, self._notices_out, self._notices_in):
            os.close(fd)

    # --- the process ---

    async def _start_process(self) -> None:
        process = LauncherProcess(
            self._daemon_out,
            self._notices_in,
            self._attempts.scratch(),
            self._on_orphans,
            self._ready.clear,
            home=self._home,
        )
        self._process = process
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await process.ready
        except TimeoutError:
            process.kill()
            raise
        if not process.dead.is_set():
            self._ready.set()

    async def _replace_when_dead(self) -> None:
        pause = _FIRST_PAUSE_S
        while self._process is not None:
            began = asyncio.get_running_loop().time()
            await self._process.dead.wait()
            if self._closing:
                return
            sweep = asyncio.create_task(self._end_adopted_orphans(), name="sweep of adopted processes")
            self._sweeps.add(sweep)
            sweep.add_done_callback(self._sweeps.discard)
            log.error(
                "the launcher (pid %d) ended with status %s; running commands go on, a new one is started",
                self._process.pid,
                self._process.exit_status,
            )
            if asyncio.get_running_loop().time() - began < pause:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_S)
            else:
                pause = _FIRST_PAUSE_S
            try:
                await self._start_process()
            except (OSError, TimeoutError) as error:
                log.error("no new launcher could be started: %s", error)  # noqa: TRY400 - the message says it all
            except Exception:  # nothing could be started any more
                log.exception("no new launcher could be started")
            try:
                self._attempts.empty_trash()  # the launcher that could have started what is in there is gone
            except OSError as error:
                log.warning("given up attempts stay in the trash: %s", error)

    async def _living(self) -> LauncherProcess:
        if self._closing:
            raise NotSpawnedError("the daemon is stopping")
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._ready.wait()
        except TimeoutError:
            raise NoRoomError("the launcher of commands is not running and could not be started again") from None
        assert self._process is not None
        return self._process

    # --- spawning ---

    async def _spawn_or_adopt(self, number: int, request: SpawnRequest) -> SpawnedShim | None:
        fds = (request.specification, request.folder_fd, *request.outputs, *request.passed)
        kind = control.WORKER if request.passed else control.SPAWN
        while True:
            process = await self._living()
            try:
                answer = process.send(kind, number, request.umask, request.grace_ms, fds)
                break
            except ConnectionError:  # its death was not noticed yet; the next one can do it
                await process.dead.wait()
            except OSError as error:
                raise NoRoomError(f"the launcher cannot be asked for a process: {error.strerror}") from error
        try:
            pid, pidfd = await answer
        except ConnectionError:
            return await self._adopt(number, request)
        except OSError as error:
            raise NoRoomError(f"the launcher could not fork a process: {error.strerror}") from error
        if pidfd is None:
            return await self._adopt(number, request, process)
        return SpawnedShim(number, pid, pidfd, process)

    async def _adopt(
        self, number: int, request: SpawnRequest, parent: LauncherProcess | None = None
    ) -> SpawnedShim | None:
        """A spawn without an answer: the folder knows whether a shim has it."""
        pause = _POLL_S
        while True:
            try:
                with request.folder.locked() as free:
                    started = request.folder.started()
                    if free and started is None:
                        request.folder.poison()
                        raise NotSpawnedError("the launcher died before it could start the command")
                    if free:
                        return None
                known = identity.from_mark(started.shim) if started else None
                pidfd = identity.open_verified(known) if known else None
                if known is not None and pidfd is not None:
                    return SpawnedShim(number, known.pid, pidfd, parent)
            except OSError as error:  # it cannot be looked at: so nobody knows that it was not started
                text = "whether a command was started cannot be looked at now, trying again: %s"
                log.log(logging.WARNING if pause == _POLL_S else logging.DEBUG, text, error, extra=request.about)
                pause = _LOOK_AGAIN_S
            await asyncio.sleep(pause)

    def _read_notices(self) -> None:
        try:
            data = self._notices + os.read(self._notices_out, 65536)
        except BlockingIOError:
            return
        *lines, self._notices = data.split(b"\n")
        for line in lines:
            number, kind, *rest = line.decode("utf-8", "replace").split(" ", 2)
            request = self._requested.get(int(number))
            if kind == "fault":
                log.error("a shim failed: %s", *rest, extra=request.about if request else None)
            elif request is None:  # it has ended already
                continue
            elif kind == "stuck":
                request.on_stuck()
            else:
                command = identity.from_mark(Mark.parse(*rest))
                if command is not None:
                    request.on_command(command)

    # --- what a dead launcher leaves ---

    async def _end_adopted_orphans(self) -> None:
        """End every process that came to the daemon because its shim and its launcher are gone."""
        async with self._sweeping:
            pause = 0.001
            while True:
                await self._all_clear.wait()  # a shim whose spawn was not answered must be known first
                with suppress(OSError):  # no descriptor to look with: again after the pause
                    orphans = [pid for pid in procfs.children(os.getpid()) if not self._is_spared(pid)]
                    if not orphans:
                        return
                    tree.kill_round(self._is_spared)
                    ended = sum(_reap_orphan(pid) for pid in orphans)
                    if ended:
                        self._on_orphans(ended)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.1)

    def _is_spared(self, pid: int) -> bool:
        """Whether a child of this process is no orphan of a lost shim.

        A launcher begins a session of its own, so nothing that comes from one can be in the session of the daemon.
        Where others may leave their orphans to this process, only what bears a nonce is proved to come from a shim.
        """
        if pid in self._shims or (self._process is not None and pid == self._process.pid):
            return True
        try:
            if os.getsid(pid) == os.getsid(0):
                return True
        except ProcessLookupError:
            return True
        seen = procfs.stat(pid)
        if seen is None or not seen.alive:
            return False
        if self._kept.get(pid) == seen.start_ticks:
            return True
        return (self._has_strangers or self._expected > 0) and not _has_nonce(pid)


def _has_nonce(pid: int) -> bool:
    """Whether a process comes from an attempt; one that this process itself comes from does not count."""
    own = f"{ENV_ATTEMPT}={os.environ.get(ENV_ATTEMPT)}".encode()
    return any(pair.startswith(f"{ENV_ATTEMPT}=".encode()) and pair != own for pair in identity.environment(pid))


def _reap(shim: SpawnedShim) -> int | None:
    """Take the wait status of a shim that has become a child of the daemon; None if it is no child, or runs."""
    try:
        seen = os.waitid(os.P_PIDFD, shim.pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if seen is None:
        return None
    return seen.si_status << 8 if seen.si_code == os.CLD_EXITED else seen.si_status


def _reap_orphan(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return False
