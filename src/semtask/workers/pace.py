"""How long tasks take, and hence how many of their jobs may wait in a worker."""

from __future__ import annotations

from collections.abc import Collection

_QUICK_BITS = 10  # durations below 2**10 us are quick: about a millisecond
_BUDGET_US = 5000  # what waits in a worker shall have its turn within this time
_MOST = 256
_WEIGHT = 8  # of the past, against one new duration
_OUTLIER = 8  # a duration counts as at most so many times the average: the machine may have been busy


class Pace:
    """The moving averages of the durations of an app's sync tasks. They are kept as powers of two, hence rarely new."""

    def __init__(self) -> None:
        self._averages: dict[str, float] = {}
        self._bits: dict[str, int] = {}
        self._quick: frozenset[str] = frozenset()
        self._depth = 0

    def note(self, task: str, ran_us: int) -> None:
        average = self._averages.get(task)
        if average is None:
            average = float(ran_us)
        else:
            average += (min(ran_us, average * _OUTLIER + _OUTLIER) - average) / _WEIGHT
        self._averages[task] = average
        bits = int(average).bit_length()
        if self._bits.get(task) != bits:
            self._bits[task] = bits
            self._quick = frozenset(name for name, bits in self._bits.items() if bits <= _QUICK_BITS)
            slowest = max((self._bits[name] for name in self._quick), default=0)
            self._depth = min(_MOST, _BUDGET_US >> slowest)

    def is_quick(self, task: str) -> bool:
        return task in self._quick

    @property
    def depth(self) -> int:
        """How many quick jobs may wait in one worker."""
        return self._depth

    def quick(self, limited: Collection[str]) -> frozenset[str]:
        """The quick tasks but those in `limited`."""
        return self._quick.difference(limited) if limited else self._quick
