"""Leaves a busy machine in peace: while it is busy, background work waits (see `Dispatcher.throttle`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from semtask.engine.supervision import supervised
from semtask.host.clocks import Clock
from semtask.host.probe import HostProbe, Load
from semtask.telemetry.counters import CPU_THROTTLE_EVENTS

log = logging.getLogger("semtask.throttle")

NEVER = 101  # a threshold that no load reaches

SUSTAINED_S = 3.0
FIRST_LOOK_S = 0.25
INTERVAL_S = 0.5
# Work that comes every few seconds meets a load that is known already.
LINGER_S = 10.0


class Limit(NamedTuple):
    """Busy from `high` percent on, calm again below `low`."""

    high: float
    low: float


MEMORY_LIMIT = Limit(95, 90)


def cpu_limit(threshold: float) -> Limit:
    # A tenth of the machine below, but above 0 for every threshold: the throttle must come to an end.
    return Limit(threshold, max(threshold - 10, threshold / 2))


class Phase(Enum):
    UNKNOWN = auto()  # background work waits for the first look
    CALM = auto()
    BUSY = auto()  # background work waits


class Throttle:
    """Decides, from one load after the other, whether background work has to wait. It has no clock and no timer.

    A load at a limit for `sustained_s` makes it BUSY; it is CALM again when CPU and memory have both been below their
    lower limits for as long. While UNKNOWN, the first load below the limits makes it CALM.
    """

    def __init__(self, cpu: Limit, memory: Limit = MEMORY_LIMIT, *, sustained_s: float = SUSTAINED_S) -> None:
        self._cpu = cpu
        self._memory = memory
        self._sustained_s = sustained_s
        self.forget()

    def forget(self) -> None:
        """The load is no longer known."""
        self.phase = Phase.UNKNOWN
        self.load: Load | None = None
        self._turning_since: float | None = None

    def observe(self, load: Load, at: float) -> None:
        """The load at this time (seconds, monotonic)."""
        self.load = load
        busy = load.cpu >= self._cpu.high or load.memory >= self._memory.high
        calm = load.cpu < self._cpu.low and load.memory < self._memory.low
        if self.phase is Phase.UNKNOWN and not busy:
            self.phase = Phase.CALM
        if not (calm if self.phase is Phase.BUSY else busy):
            self._turning_since = None
            return
        if self._turning_since is None:
            self._turning_since = at
        if at - self._turning_since >= self._sustained_s:
            self.phase = Phase.CALM if self.phase is Phase.BUSY else Phase.BUSY
            self._turning_since = None

    @property
    def reason(self) -> str | None:
        """Why background work waits, for people; None if it may go."""
        if self.phase is Phase.CALM:
            return None
        if self.load is None or self.phase is Phase.UNKNOWN:
            return "the load of the machine is being measured"
        both = (("CPU", self.load.cpu, self._cpu), ("memory", self.load.memory, self._memory))
        high = [f"{name} {now:.0f} %, until below {limit.low:g} %" for name, now, limit in both if now >= limit.low]
        return f"the machine is busy: {' and '.join(high)}" if high else "the machine was busy until a moment ago"


class LoadWatch:
    """Looks at the load as long as somebody needs it, and tells the dispatcher what follows from it.

    It is needed while commands run, while the throttle is active, and for LINGER_S after the last claim or command;
    else it sleeps without a timer. What the load is after a pause is not known: then background work waits for a
    first look of FIRST_LOOK_S.
    """

    def __init__(
        self,
        probe: HostProbe,
        throttle: Throttle,
        clock: Clock,
        *,
        apply: Callable[[str | None], None],
        running: Callable[[], int],
        count: Callable[[str, int], None],
    ) -> None:
        self._probe = probe
        self._throttle = throttle
        self._clock = clock
        self._apply = apply
        self._running = running
        self._count = count
        self._needed_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._blind = False
        self.since: int | None = None  # epoch ms, while the throttle is active

    @property
    def load(self) -> Load | None:
        """None while nobody needs it."""
        return self._throttle.load

    @property
    def active(self) -> bool:
        return self._throttle.phase is Phase.BUSY

    @property
    def reason(self) -> str | None:
        return self._throttle.reason if self.active else None

    def needed(self) -> None:
        """Something is about to be claimed."""
        self._needed_at = self._clock.monotonic()
        if self._task is None:
            self._apply(self._throttle.reason)
            self._task = asyncio.get_running_loop().create_task(self._watch(), name="load watch")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        try:
            await supervised("the load watch", self._run)
        finally:
            self._task = None

    async def _run(self) -> None:
        try:
            self._attempt(self._probe.restart)
            await asyncio.sleep(FIRST_LOOK_S)
            while self._is_needed():
                self._attempt(self._look)
                await asyncio.sleep(INTERVAL_S)
        finally:
            self._forget()

    def _attempt(self, look: Callable[[], None]) -> None:
        """Where the load cannot be seen (no descriptor left for /proc), work must not wait forever."""
        try:
            look()
            self._blind = False
        except OSError as error:
            if not self._blind:
                log.warning("the load of the machine cannot be measured, background work does not wait: %s", error)
            self._blind = True
            self._forget()

    def _forget(self) -> None:
        self._throttle.forget()
        self.since = None
        self._apply(None)

    def _is_needed(self) -> bool:
        if self.active or self._running():
            self._needed_at = self._clock.monotonic()
        return self._clock.monotonic() < self._needed_at + LINGER_S

    def _look(self) -> None:
        before = self._throttle.phase
        self._throttle.observe(self._probe.sample(), self._clock.monotonic())
        after = self._throttle.phase
        if after is Phase.BUSY and before is not Phase.BUSY:
            self.since = self._clock.now_ms()
            self._count(CPU_THROTTLE_EVENTS, 1)
            log.info("background work waits: %s", self._throttle.reason)
        elif before is Phase.BUSY and after is not Phase.BUSY:
            self.since = None
            log.info("the machine is calm, background work goes on")
        self._apply(self._throttle.reason)
