"""How busy this machine is: CPU and memory in use, smoothed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import psutil

# After this time a step of the load is seen to two thirds, after three times as long nearly all of it.
TIME_CONSTANT_S = 1.0


class Load(NamedTuple):
    """Percent in use, of all CPUs and of the memory that programs can have."""

    cpu: float
    memory: float


class HostProbe(Protocol):
    def restart(self) -> None:
        """Forget what was seen: the next sample is of the time from now on."""
        ...

    def sample(self) -> Load:
        """The load up to now, smoothed over the samples since `restart`. Raises OSError."""
        ...


class SystemProbe:
    """The whole machine, as the kernel tells it: also in a container, whose neighbours count."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._busy = Smoothed(TIME_CONSTANT_S)
        self.restart()

    def restart(self) -> None:
        self._busy.forget()
        self._used, self._total = _cpu_seconds()
        self._at = self._monotonic()

    def sample(self) -> Load:
        used, total = _cpu_seconds()
        now = self._monotonic()
        if total > self._total:
            percent = 100 * (used - self._used) / (total - self._total)
            self._busy.add(min(max(percent, 0.0), 100.0), now - self._at)
            self._used, self._total, self._at = used, total, now
        return Load(round(self._busy.value, 1), psutil.virtual_memory().percent)


class Smoothed:
    """An exponential average that forgets by time, not by the number of samples. The first sample is its value."""

    def __init__(self, time_constant_s: float) -> None:
        self._time_constant_s = time_constant_s
        self._value: float | None = None

    @property
    def value(self) -> float:
        return self._value or 0.0

    def forget(self) -> None:
        self._value = None

    def add(self, sample: float, seconds: float) -> None:
        """`sample` is the average over the last `seconds`."""
        if self._value is None:
            self._value = sample
        else:
            self._value += (sample - self._value) * -math.expm1(-seconds / self._time_constant_s)


def _cpu_seconds() -> tuple[float, float]:
    """(used, all) since boot, over all CPUs. Waiting for a disk is not use; what a hypervisor takes away is."""
    times = psutil.cpu_times()
    total = sum(times) - times.guest - times.guest_nice  # both are included in user and nice already
    return total - times.idle - times.iowait, total
