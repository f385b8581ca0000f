"""Whether a series is flat: how much its floor has grown over the part that is judged.

The first 30 % of a series are warm-up (of the life of a process; of the run, for the home). The rest is cut into blocks
of equal length, and the floor of a block is its lower quartile: what is held for a moment, by a burst or until the
janitor comes, is not in it, but what is never given back is. Growth is the median slope between the floors of any two
blocks (Theil-Sen), times the time that is judged; so one block with a fault in it does not decide. It may be
`absolute`, or `share` of the median floor, whichever is more. The longer a process lives, the smaller a leak is found.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from tests.soak.sampling import HomeSample, ProcessSample

WARM_UP = 0.3
BLOCKS = 8
LEAST_SAMPLES = BLOCKS  # of what is judged
LEAST_S = 40.0  # of a life: younger processes still fill their caches
MIB = 1024.0 * 1024.0


class Allowed(NamedTuple):
    absolute: float
    share: float


# Of each process in its own life.
OF_A_PROCESS: dict[tuple[str, str], Allowed] = {
    **{(kind, "descriptors"): Allowed(6, 0.0) for kind in ("launcher", "shim", "worker")},
    ("daemon", "descriptors"): Allowed(12, 0.15),
    **{(kind, "threads"): Allowed(3, 0.0) for kind in ("daemon", "launcher", "shim", "worker")},
    ("daemon", "rss_kb"): Allowed(4096, 0.04),
    ("launcher", "rss_kb"): Allowed(1024, 0.04),
    ("shim", "rss_kb"): Allowed(1024, 0.04),
    ("worker", "rss_kb"): Allowed(4096, 0.08),
}
# Of the home and of all its processes together, over the whole run.
OF_THE_HOME: dict[str, Allowed] = {
    "shim_processes": Allowed(4, 0.5),
    "worker_processes": Allowed(4, 0.5),
    "daemon_pss_kb": Allowed(6144, 0.1),
    "worker_pss_kb": Allowed(16384, 0.3),
    "wal_bytes": Allowed(4 * MIB, 0.3),
    "database_bytes": Allowed(2 * MIB, 0.25),
    "disk_bytes": Allowed(8 * MIB, 0.25),
    "attempt_folders": Allowed(12, 0.5),
    "rows": Allowed(200, 0.2),
    "queued": Allowed(60, 0.5),
}


class Growth(NamedTuple):
    """Of one series. `floor` is the median floor, `by` what it grew in `seconds`, `allowed` what it might."""

    name: str
    floor: float
    by: float
    allowed: float
    seconds: float

    @property
    def flat(self) -> bool:
        return self.by <= self.allowed

    def __str__(self) -> str:
        verdict = "flat" if self.flat else "GROWS"
        change = f"{self.by:+,.0f} in {self.seconds:.0f} s (up to {self.allowed:,.0f})"
        return f"{self.name}: {self.floor:,.0f}, {change}: {verdict}"


def growth(name: str, series: Sequence[tuple[float, float]], allowed: Allowed) -> Growth | None:
    """None if there are too few samples to judge. `series` is of (seconds, value), in order of time."""
    if len(series) < 2:
        return None
    began, ended = series[0][0], series[-1][0]
    start = began + WARM_UP * (ended - began)
    span = ended - start
    judged = [(at, value) for at, value in series if at >= start]
    if len(judged) < LEAST_SAMPLES or span <= 0:
        return None
    blocks: dict[int, list[float]] = defaultdict(list)
    for at, value in judged:
        blocks[min(int((at - start) / span * BLOCKS), BLOCKS - 1)].append(value)
    floors = {number: _lower_quartile(values) for number, values in blocks.items()}
    slopes = [(floors[b] - floors[a]) / (b - a) for a, b in combinations(sorted(floors), 2)]
    floor = statistics.median(floors.values())
    by = statistics.median(slopes) * BLOCKS
    return Growth(name, floor, by, max(allowed.absolute, allowed.share * floor), span)


def of_processes(samples: Iterable[tuple[float, ProcessSample]], least_s: float = LEAST_S) -> list[Growth]:
    """Of each process that lived for `least_s` at least."""
    lives: dict[tuple[str, int, int], list[tuple[float, ProcessSample]]] = defaultdict(list)
    for at, one in samples:
        lives[one.kind, one.pid, one.started].append((at, one))
    found = []
    for (kind, pid, _), life in lives.items():
        if life[-1][0] - life[0][0] < least_s:
            continue
        for (of, metric), allowed in OF_A_PROCESS.items():
            if of == kind:
                values = [(at, float(getattr(one, metric))) for at, one in life]
                found.append(growth(f"{metric} of {kind} {pid}", values, allowed))
    return [one for one in found if one is not None]


def of_home(samples: Sequence[HomeSample], least_s: float = LEAST_S) -> list[Growth]:
    if not samples or samples[-1].seconds - samples[0].seconds < least_s:
        return []
    found = []
    for metric, allowed in OF_THE_HOME.items():
        values = [(at, value) for at, told in samples if (value := told[metric]) is not None]
        found.append(growth(metric, values, allowed))
    return [one for one in found if one is not None]


def _lower_quartile(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 4]
