"""Every step of daemon, launcher, shims and workers: killed there once, killed there and again in the recovery.

After each kill no job is lost, none that may start only once is started twice, nothing overlaps, no process and no
folder is left, and the database holds together. The steps are in tests/harness/points.py.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.rig import stop_for_certain
from tests.harness.ground import Ground
from tests.harness.points import scenes
from tests.harness.scenes import SCENES

POINTS = scenes()
_TRIES = 3  # a scene may pass a point by: what is recalled or told first is a matter of time

_numbers = itertools.count()
_kills: Counter[str] = Counter()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    ground = Ground(tmp_path_factory.mktemp("points"))
    try:
        ground.revive()
        yield ground
    finally:
        stop_for_certain(ground.daemon)
        print(f"\n{_kills.total()} kills: {dict(_kills)}")


@pytest.mark.chaos
@pytest.mark.parametrize("point", POINTS)
def test_killed_once(ground: Ground, point: str) -> None:
    survive(ground, point)


def survive(ground: Ground, point: str, victim: str = "self", second: str | None = None) -> None:
    plan = ground.plan
    plan.disarm()
    plan.arm(point, victim)
    if second is not None:
        plan.arm(second)
    for _ in range(_TRIES):
        ground.clear()
        SCENES[POINTS[point]](ground, f"n{next(_numbers)}")
        ended = ground.settle()
        assert not ground.findings(ended)
        if not plan.is_armed(point):
            break
    still_armed = plan.disarm()
    assert point not in still_armed, "the point was not reached"
    _kills[point.partition(".")[0] if victim == "self" else "daemon"] += 1
