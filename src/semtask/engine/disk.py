"""Keeps an eye on the disk, and does what its state asks for: see `model.disk`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from semtask.engine.supervision import supervised
from semtask.errors import RpcError, Throttled
from semtask.host.clocks import Clock
from semtask.model.disk import SPARE_BYTES, DiskHealth, DiskState, Room, Trouble, low_mark
from semtask.protocol.admin import DiskView

log = logging.getLogger("semtask.disk")

INTERVAL_S = 1.0
RETRY_AFTER_MS = 5000
# A damaged database is looked at again after these pauses; what was a whim of the disk is over by then.
CHECK_PAUSES_S: Sequence[float] = (0.0, 5.0, 25.0)
# A disk that passes every check, and still fails again and again, is not believed forever.
MAX_ACQUITTALS = 3

_LEVELS = {DiskState.OK: logging.INFO, DiskState.LOW: logging.WARNING}


class Reserve(Protocol):
    """Space on one disk, kept for the time when there is none: see host.ballast."""

    size: int

    def free(self) -> int: ...
    def total(self) -> int: ...
    def fill(self, spare: int) -> bool: ...
    def release(self) -> bool: ...


class DiskWatch:
    """Looks at the disks while something runs, and whenever somebody wants something; an idle daemon does not wake up
    for it. The store tells it of what it could not write or read (see `store.base.StoreWatch`).

    `suspend(reason)`: nothing may be started, None: it may again. `make_room` cleans up. `check` looks through the
    database: what is damaged, None if nothing is.
    """

    def __init__(
        self,
        reserves: Sequence[Reserve],
        *,
        low_bytes: int,
        clock: Clock,
        suspend: Callable[[str | None], None],
        running: Callable[[], int],
        make_room: Callable[[], None],
        check: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._reserves = reserves
        self._low_bytes = low_bytes
        self._clock = clock
        self._suspend = suspend
        self._running = running
        self._make_room = make_room
        self._check = check
        self._health = DiskHealth()
        self._since = clock.now_ms()
        self._told = (DiskState.OK, "")
        self._looked_at = -INTERVAL_S
        self._held: bool | None = None  # the reserves, as far as there was room for them
        self._at_reserves = asyncio.Lock()
        self._wake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._acquittals = 0

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the reserves, as far as there is room."""
        self.look()
        await self._keep_reserves()

    async def stop(self) -> None:
        """The space belongs to the user while nothing runs."""
        for task in (self._watching, self._checking):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        for reserve in self._reserves:
            await self._release(reserve)

    # --- what others want to know ----------------------------------------------------------------------------------

    def require_room(self) -> None:
        """Raise Throttled while nothing new is taken."""
        self.look()
        if self._health.state is not DiskState.OK:
            raise Throttled(f"{self._health.reason}. Nothing was stored", retry_after_ms=RETRY_AFTER_MS)

    def view(self) -> DiskView:
        self.look()
        state, reason = self._health.state, self._health.reason
        rooms = self._health.rooms
        scarce = min(rooms, key=lambda room: room.free - room.low) if rooms else None
        return DiskView(
            state=state.value,
            reason=reason,
            since=None if state is DiskState.OK else self._since,
            free_bytes=scarce.free if scarce else None,
            low_bytes=scarce.low if scarce else None,
        )

    # --- what it is told -------------------------------------------------------------------------------------------

    def needed(self) -> None:
        """Something is about to be claimed."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch(), name="disk watch")

    def trouble(self, trouble: Trouble | None) -> None:
        self._health.trouble(trouble, self._clock.monotonic())
        self._tell()
        self._wake.set()
        self.needed()

    def damaged(self, what: str) -> None:
        if self._checking is None:
            self._health.damaged(what)
            self._tell()
            if self._acquittals < MAX_ACQUITTALS:
                check = supervised("the check of the database", self._check_again)
                self._checking = asyncio.get_running_loop().create_task(check, name="database check")

    # --- looking ---------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Find out how much room there is, unless that is known from a moment ago."""
        now = self._clock.monotonic()
        if now < self._looked_at + INTERVAL_S / 2:
            return
        self._looked_at = now
        try:
            rooms = [Room(r.free(), low_mark(r.total(), self._low_bytes)) for r in self._reserves]
        except OSError as error:
            log.warning("the free space of the disk is not known: %s", error)
            return
        self._health.look(rooms, now)
        self._tell()

    async def _watch(self) -> None:
        try:
            await supervised("the disk watch", self._run)
        finally:
            self._watching = None

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            self.look()
            await self._keep_reserves()
            if not self._running() and not self._health.no_space:
                return
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _check_again(self) -> None:
        for pause in CHECK_PAUSES_S:
            await asyncio.sleep(pause)
            try:
                found = await self._check()
            except RpcError as error:
                log.warning("the database cannot be looked through: %s", error.message)
                continue
            self._health.damaged(found)
            self._tell()
            if found is None:
                self._acquittals += 1
                self._checking = None
                return
        log.error("the database stays damaged; it is not looked through again")

    # --- what follows ----------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        state, reason = told = self._health.state, self._health.reason or ""
        before, self._told = self._told, told
        if told == before:
            return
        self._suspend(reason if state in {DiskState.FULL, DiskState.DEGRADED} else None)
        if state is before[0]:
            return
        self._since = self._clock.now_ms()
        log.log(_LEVELS.get(state, logging.ERROR), "the disk is %s: %s", state, reason or "all goes on")
        if state is DiskState.LOW:
            self._make_room()
        if self._health.no_space:
            self.needed()

    async def _keep_reserves(self) -> None:
        """There while there is room, given up where there is none."""
        async with self._at_reserves:
            wanted = not self._health.no_space
            if self._held is wanted:
                return
            if wanted:
                for reserve in self._reserves:
                    await self._fill(reserve)
                self._health.released(0)
            else:
                self._health.released(sum([await self._release(reserve) for reserve in self._reserves]))
            self._held = wanted
            self._looked_at = -INTERVAL_S
            self.look()

    async def _fill(self, reserve: Reserve) -> None:
        try:
            if not await asyncio.to_thread(reserve.fill, SPARE_BYTES):
                log.warning("the disk has no room for a reserve of %d MiB", reserve.size // 2**20)
        except OSError as error:
            log.warning("the disk has no reserve: %s", error)

    async def _release(self, reserve: Reserve) -> int:
        """How many bytes that gave."""
        try:
            return reserve.size if await asyncio.to_thread(reserve.release) else 0
        except OSError as error:
            log.warning("the reserve of the disk cannot be given up: %s", error)
            return 0
