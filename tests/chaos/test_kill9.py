"""kill -9 of daemon, launcher, shims and workers at random moments under a mixed load, on the unmodified daemon.

The judge does not trust the database: see tests/harness/work.py for what the jobs themselves write down.
"""

from __future__ import annotations

import random
import secrets
import time
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, processes_of, stop_for_certain
from tests.figures import tell
from tests.harness.chaos import Chaos
from tests.harness.ground import Ground


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_nothing_is_lost_and_nothing_overlaps(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kills = request.config.getoption("--chaos-kills")
    seed = request.config.getoption("--chaos-seed") or secrets.randbits(32)
    print(f"\nseed {seed}")
    began = time.monotonic()
    ground = Ground(tmp_path, build=Daemon)
    chaos = Chaos(ground, random.Random(seed))
    try:
        chaos.run(kills)
        ended = ground.settle(120.0)
        verdict = ground.verdict(ended)
        wrong = ground.findings(ended)
        stats = ground.daemon.stats()
    finally:
        stop_for_certain(ground.daemon)
    left = processes_of(ground.home)
    print(
        f"{chaos.count} kills {dict(chaos.kills)} in {time.monotonic() - began:.0f} s, {len(ground.jobs)} jobs: "
        f"{len(verdict.lost)} lost, {len(verdict.overlaps)} overlaps, {len(verdict.twice)} of the "
        f"started-at-most-once started twice, {len(left)} processes left\n"
        f"{verdict.evidence.starts.total()} starts, {verdict.evidence.ends.total()} ends, {verdict.superseded} "
        f"superseded, {verdict.brought_down} brought down, {chaos.producer.repeats} enqueues repeated, "
        f"{stats['counters']}"
    )
    tell("kill -9 at random moments", asked=kills, got=chaos.count)
    tell("  jobs under them", asked="", got=len(ground.jobs))
    tell("  jobs lost", asked=0, got=len(verdict.lost))
    tell("  overlaps", asked=0, got=len(verdict.overlaps))
    tell("  started twice, though at most once was asked for", asked=0, got=len(verdict.twice))
    tell("  processes left", asked=0, got=len(left))
    assert not wrong
    assert not left
    assert not chaos.changed(ended), "final rows have changed"
    assert stats["total_jobs"] == len(ground.jobs)
    assert stats["system"]["running_processes"] == 0
