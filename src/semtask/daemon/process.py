"""The process of the daemon: it opens the parts, serves until it is told to stop, and closes them in reverse.

It runs no user code and spawns no job itself; see `launch/launcher.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from semtask.api.http import RpcServer
from semtask.config.settings import Settings
from semtask.config.unused import unknown_environment
from semtask.daemon.composition import Composition
from semtask.engine.background import background
from semtask.engine.lifecycle import Engine
from semtask.engine.supervision import ServiceFailed
from semtask.engine.watchdog import LoopWatchdog
from semtask.errors import EXIT_DISK_FAILED, StartupError
from semtask.host.backups import way_back
from semtask.host.open_files import require_open_files
from semtask.host.ownership import owned_folders
from semtask.host.presence import Presence
from semtask.host.systemd import Service
from semtask.store.sqlite_faults import DamageMet
from semtask.store.sqlite_file import damaged_at_start
from semtask.store.writer import DiskFailed
from semtask.telemetry.counters import LOOP_STALLS
from semtask.telemetry.logs import configure_logging

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
    it private: it ends immediately when that becomes readable, and does not run the apps of the user's settings.
    """
    if detached:
        _reset_signals()
    if life_fd is not None:
        settings = settings.without_apps()
    inherited_umask = os.umask(0o077)
    try:
        require_open_files()
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
    """One run of the daemon, from its start to its exit code."""

    def __init__(self, settings: Settings, inherited_umask: int) -> None:
        self._settings = settings
        self._composition = Composition(settings, inherited_umask)
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._exit_code = 0
        self._service = Service(os.environ)

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
        engine, operations, server = await self._composition.open(stack, self._fatal)
        await engine.recover()
        await server.start()
        stack.push_async_callback(server.close)
        await stack.enter_async_context(background(self._watch_home(Presence(_vital(settings)), server)))
        await engine.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        _announce(ready_fd)
        self._be_watched(stack, engine)
        for name, problem in unknown_environment().items():
            log.warning("%s %s", name, problem)
        log.info("ready: pid %d, home %s", os.getpid(), settings.home)
        await self._stopping.wait()
        log.info("stopping")
        self._service.stopping(settings.shutdown_grace_ms / 1000 + STOPPING_S)
        operations.accepting = False
        server.drain()
        await engine.stop(wait_s=settings.shutdown_grace_ms / 1000, at_once=self._at_once)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)

    def _asked_to_stop(self) -> None:
        """The first signal lets running jobs go on for a while; the second one stops them immediately."""
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

    async def _watch_home(self, presence: Presence, server: RpcServer) -> None:
        """Make the socket again when it is gone; end where that cannot be, or when nothing is stored any more."""
        before = None
        while True:
            await asyncio.sleep(PRESENCE_S)
            try:
                lost = presence.lost() or self._unreachable(server)
            except OSError as error:
                log.warning("the home cannot be looked at: %s", error)
                continue
            if lost and before:
                self._give_up(f"{lost}; start semtask again when its home is in order", EXIT_HOME_LOST)
                return
            before = lost

    def _unreachable(self, server: RpcServer) -> str | None:
        """Why nobody could reach this daemon."""
        try:
            if server.stay_reachable():
                log.warning("%s was gone or replaced, and was made again", self._settings.socket)
        except StartupError as error:
            return error.message
        return None

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


def _vital(settings: Settings) -> list[Path]:
    """What cannot be made again: where these are gone, nothing that is written can be found by anybody."""
    return [settings.home, *(Path(f"{settings.database}{suffix}") for suffix in ("", "-wal", "-shm"))]


def _announce(ready_fd: int | None) -> None:
    if ready_fd is not None:
        os.write(ready_fd, b"1")
        os.close(ready_fd)
