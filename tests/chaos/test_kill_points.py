"""Every step of daemon, launcher, shims and workers: killed there once, and once more in the recovery from that.

After each kill no job is lost, none that may start only once is started twice, nothing overlaps, no process and no
folder is left, and the database holds together. The steps are in tests/harness/points.py.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pytest

from tests.daemon.rig import stop_for_certain
from tests.figures import tell
from tests.harness.crew import Case, Crew
from tests.harness.ground import Ground
from tests.harness.points import OURS, scenes
from tests.harness.scenes import both

POINTS = tuple(scenes())
GROUNDS = 4
CERTAIN_CALLS = 45
# Where the recovery is killed: what the next daemon does, or what this one does about a helper that it has lost.
NEXT_DAEMON = (
    "daemon.take_epoch.after",
    "daemon.empty_trash.before",
    "launcher.rehearse.after",
    "daemon.start_launcher.after",
    "daemon.judge.before",
    "daemon.judge.after",
    "daemon.judge_worker.before",
    "daemon.judge_worker.after",
    "daemon.poison.command.after",
    "daemon.poison.worker.after",
    "daemon.tick.finish.applied",
    "daemon.tick.finish.committed",
    "daemon.recover.after",
    "daemon.open_sockets.after",
    "daemon.tick.claim.committed",
    "shim.start_command.command.after",
)
SAME_DAEMON = (
    "daemon.see_loss.command.before",
    "daemon.poison.command.after",
    "daemon.see_loss.worker.after",
    "daemon.tick.finish.applied",
    "daemon.tick.finish_many.committed",
    "launcher.end_orphans.before",
    "launcher.settle.before",
    "shim.lock.command.after",
)
# Where nearly every recovery comes by.
ANY_NEXT_DAEMON = ("daemon.open_sockets.after",)
ANY_SAME_DAEMON = ("daemon.tick.finish.applied", "daemon.tick.finish_many.committed")


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_every_kill_point(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--chaos-seed") or secrets.randbits(32)
    dice = random.Random(seed)
    cases = every_case() if request.config.getoption("--kill-points") == "all" else some_cases(dice)
    dice.shuffle(cases)
    print(f"\nseed {seed}")
    began = time.monotonic()
    crew = Crew(tmp_path, cases, GROUNDS)
    crew.run()
    print(
        f"{crew.kills.total()} kills {dict(crew.kills)} at {len(crew.met)} of {len(POINTS)} "
        f"points, {crew.seconds} of them in the recovery from another one, {crew.jobs} jobs, "
        f"{len(crew.failures)} failures in {time.monotonic() - began:.0f} s"
    )
    tell("kill points, each killed at", asked=len(POINTS), got=len(crew.met))
    tell(
        "  and once more in the recovery from that",
        asked=sum(case.second is not None for case in cases),
        got=crew.seconds,
    )
    tell("  kills at all", asked="", got=crew.kills.total())
    tell("  jobs under these", asked="", got=crew.jobs)
    tell("  kills there that broke a promise", asked=0, got=len(crew.failures))
    assert not crew.failures, "\n".join(crew.failures)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_every_call_of_a_shim(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What a shim asks of the kernel, one call after the other, until it ends without having met its death."""
    everywhere = request.config.getoption("--kill-points") == "all"
    cases: list[Case] = []
    for kind, count in calls_of_shims(tmp_path / "counted").items():
        # How often it looks whether all of the tree is gone is a matter of time.
        calls = [Case(f"shim.{kind}.call.{n}", may_miss=n > CERTAIN_CALLS) for n in range(1, count + 1)]
        start = 0 if everywhere else secrets.randbelow(6)
        if everywhere or kind == "command":
            cases += calls[start :: 1 if everywhere else 6]
            cases += [call._replace(victim="daemon") for call in calls[start :: 2 if everywhere else 12]]
    crew = Crew(tmp_path, cases, GROUNDS)
    crew.run()
    print(f"\n{crew.kills.total()} kills {dict(crew.kills)} at calls of shims, {crew.jobs} jobs")
    tell("kills at system calls of shims", asked="", got=crew.kills.total())
    tell("  of these, broke a promise", asked=0, got=len(crew.failures))
    assert not crew.failures, "\n".join(crew.failures)


def calls_of_shims(folder: Path) -> dict[str, int]:
    """How many there are when nothing goes wrong, by what the shim runs."""
    ground = Ground(folder)
    try:
        ground.revive()
        both(ground, "counted")
        assert not ground.findings(ground.settle())
        return {kind: int((folder / "plan" / f"calls.shim.{kind}").read_text()) for kind in OURS}
    finally:
        stop_for_certain(ground.daemon)


def every_case() -> list[Case]:
    helpers = [point for point in POINTS if not point.startswith("daemon")]
    return [
        *(Case(point) for point in POINTS),
        *(Case(point, "daemon") for point in helpers),
        *twice(POINTS),
    ]


def some_cases(dice: random.Random) -> list[Case]:
    """Others each time, so that a few runs cover them all."""
    start = dice.randrange(6)
    helpers = [point for point in POINTS if not point.startswith("daemon")]
    doubles = twice(POINTS)
    return [
        *(Case(point) for point in POINTS[start::6]),
        *(Case(point, "daemon") for point in helpers[start::12]),
        *doubles[(start + 3) % 6 :: 18],
    ]


def twice(points: Sequence[str]) -> list[Case]:
    """The second kill is somewhere in the recovery, or at the same point again."""
    next_daemon, same_daemon = cycle((*NEXT_DAEMON, None)), cycle((*SAME_DAEMON, None))
    return [
        Case(p, second=next(next_daemon) or p, otherwise=ANY_NEXT_DAEMON)
        if p.startswith("daemon")
        else Case(p, second=next(same_daemon) or p, otherwise=ANY_SAME_DAEMON)
        for p in points
    ]
