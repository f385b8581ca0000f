"""How an attempt ended, learned from its shim: the record, or that the shim was lost; either way nothing is left."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from semtask.executors.leftovers import end_leftovers
from semtask.executors.spawner import SpawnedShim, Spawner, readable
from semtask.host import identity
from semtask.launch.control import EXIT_NO_ROOM
from semtask.launch.folder import AttemptFolder, Record
from semtask.model.job import ProcessIdentity
from semtask.telemetry.counters import ZOMBIES_CLEANED

_LOOK_AGAIN_S = 1.0
_POLL_S = 0.05


class Lost(NamedTuple):
    """The shim is gone and left no record. `status` is its wait status, where that is known."""

    status: int | None

    @property
    def had_no_room(self) -> bool:
        return self.status is not None and os.waitstatus_to_exitcode(self.status) == EXIT_NO_ROOM

    @property
    def how(self) -> str:
        if self.status is None:
            return "is gone"
        code = os.waitstatus_to_exitcode(self.status)
        return f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"


@dataclass(eq=False)
class ShimEnd:
    """`on_command` is told who the command was, if `started` says so: it may be the first to know."""

    spawner: Spawner
    folder: AttemptFolder
    nonce: str
    count: Callable[[str, int], None]
    on_command: Callable[[ProcessIdentity], None]
    log: logging.Logger
    about: Mapping[str, object]
    _settled: bool = False
    _status: int | None = None

    async def wait(self, shim: SpawnedShim | None) -> Record | Lost:
        """Return when the shim (None: it has ended already) and all that it ran are gone.

        The facts are looked at until they can be seen: without a descriptor nobody may say that it has ended.
        """
        told = False
        try:
            if shim is not None:
                await shim.ended()
            while True:
                try:
                    return await self._seen(shim)
                except OSError as error:
                    if not told:
                        text = "how %s ended cannot be looked at now, trying again: %s"
                        self.log.warning(text, self.folder.path, error, extra=self.about)
                    told = True
                await asyncio.sleep(_LOOK_AGAIN_S)
        finally:
            if shim is not None:
                self.spawner.release(shim)

    async def _seen(self, shim: SpawnedShim | None) -> Record | Lost:
        command = self._command()
        if command is not None:
            self.on_command(command)
        record = self.folder.record()
        return await self._lost(shim) if record is None else record

    async def _lost(self, shim: SpawnedShim | None) -> Lost:
        with self.folder.locked():
            self.folder.poison()
        if not self._settled:
            self._status = await self.spawner.settle(shim)
            self._settled = True
        killed: set[int] = set()
        try:
            await end_leftovers(self.nonce, self._command(), killed)
        finally:
            if killed:
                self.count(ZOMBIES_CLEANED, len(killed))
        return Lost(self._status)

    def _command(self) -> ProcessIdentity | None:
        started = self.folder.started()
        return None if started is None else identity.from_mark(started.command)


async def unlocked(folder: AttemptFolder) -> None:
    """Wait until no shim holds a folder any more."""
    started = folder.started()
    shim = identity.from_mark(started.shim) if started else None
    pidfd = identity.open_verified(shim) if shim else None
    if pidfd is not None:
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)  # a shim that was stopped notices nothing
            await readable(pidfd)
        finally:
            os.close(pidfd)
    while True:
        with folder.locked() as free:
            if free:
                return
        await asyncio.sleep(_POLL_S)
