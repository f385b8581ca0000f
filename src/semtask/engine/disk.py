"""What happens when the disk runs full: nothing new is taken, and what ends can still be written down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from semtask.engine.supervision import supervised
from semtask.errors import Throttled

log = logging.getLogger("semtask.disk")

INTERVAL_S = 1.0
LOW_BYTES = 8 * 1024 * 1024
# What must be free beside the reserve before new work is taken again: more than LOW_BYTES, so that it does not flap.
SPARE_BYTES = 2 * LOW_BYTES
RETRY_AFTER_MS = 5000


class Reserve(Protocol):
    """Space on one disk, kept for the time when there is none: see host.ballast."""

    size: int

    def free(self) -> int: ...
    def fill(self, spare: int) -> bool: ...
    def release(self) -> bool: ...


class DiskWatch:
    """Looks at the free space while something runs. Below LOW_BYTES the reserves are given up for the records, the
    logs and the ends of what runs; enqueueing is answered with Throttled and nothing is started, until there is room
    for the reserves again. Nobody has to do more than to free some space.
    """

    def __init__(
        self, reserves: Sequence[Reserve], *, suspend: Callable[[str | None], None], running: Callable[[], int]
    ) -> None:
        self._reserves = reserves
        self._suspend = suspend
        self._running = running
        self._task: asyncio.Task[None] | None = None
        self._wanted = SPARE_BYTES
        self.low: str | None = None  # why nothing new is taken, for people

    async def start(self) -> None:
        """Make the reserves, as far as there is room."""
        for reserve in self._reserves:
            await self._fill(reserve)

    async def stop(self) -> None:
        """The space belongs to the user while nothing runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for reserve in self._reserves:
            await self._release(reserve)

    def check(self) -> None:
        """Raise Throttled while nothing new is taken."""
        if self.low is not None:
            raise Throttled(self.low, retry_after_ms=RETRY_AFTER_MS)

    def needed(self) -> None:
        """Something is about to be claimed."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch(), name="disk watch")

    async def _watch(self) -> None:
        try:
            await supervised("the disk watch", self._run)
        finally:
            self._task = None

    async def _run(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(INTERVAL_S)
            if self.low is None and not self._running():
                return

    async def _look(self) -> None:
        try:
            free = min(reserve.free() for reserve in self._reserves)
        except OSError as error:
            log.warning("the free space of the disk is not known: %s", error)
            return
        if self.low is None and free < LOW_BYTES:
            released = sum([await self._release(reserve) for reserve in self._reserves])
            self._wanted = released + SPARE_BYTES
            self._tell(
                f"the disk is nearly full; free {-((free - SPARE_BYTES) // 2**20)} MiB and all goes on by itself"
            )
        elif self.low is not None and free >= self._wanted:
            await self.start()
            self._tell(None)

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

    def _tell(self, low: str | None) -> None:
        self.low = low
        self._suspend(low)
        if low:
            log.error("%s; nothing new is taken or started", low)
        else:
            log.info("the disk has room again")
