"""A harness that cannot fail proves nothing: each of these faults, put into a test build, must be found."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.rig import eventually, processes_of, stop_for_certain
from tests.figures import tell
from tests.harness.chaos import Chaos
from tests.harness.ground import Ground
from tests.harness.load import Planned
from tests.harness.mutations import GO
from tests.harness.processes import by_kind
from tests.harness.verdict import Evidence

KILLS = 12
SETTLED_S = 20.0


def leave_processes(ground: Ground) -> None:
    ground.enqueue(Planned("left", "command", seconds=0.05, flags="leave"))


def acknowledge_and_die(ground: Ground) -> None:
    """The daemon is killed as soon as it has answered."""
    for number in range(5):
        ground.enqueue(Planned(f"acknowledged{number}", "command"))
        ground.restart()


def die_under_commands(ground: Ground, seconds: float = 1.0) -> None:
    jobs = [Planned(f"running{n}", "command", once=n == 0, seconds=seconds) for n in range(2)]
    ground.enqueue(*jobs)
    ground.await_start(*jobs)
    ground.restart()


def die_under_long_commands(ground: Ground) -> None:
    """They run for longer than the next daemon takes to start."""
    die_under_commands(ground, seconds=10.0)


def report_late(ground: Ground) -> None:
    ground.enqueue(*(Planned(f"retried{n}", "command", seconds=0.5, flags="fail") for n in range(4)))


def die_before_shims(ground: Ground) -> None:
    """The daemon dies when the launcher has forked the shims, and they get to their locks under the next one."""
    jobs = [Planned(f"late{n}", "command", once=n == 0, seconds=0.5) for n in range(2)]
    ids = ground.enqueue(*jobs)

    def forked(claim_no: int) -> bool:
        found = by_kind(ground.home)
        claims = {ground.job(job_id)["claim_no"] for job_id in ids}
        return claims == {claim_no} and len(found["shim"]) >= claim_no * len(jobs) + len(found["worker"])

    ground.until(lambda: forked(1), "the shims are there")
    ground.restart()
    ground.until(lambda: forked(2), "they were given up, and new ones are there")
    (ground.folder / "plan" / GO).touch()


# The mutations, the load that brings them to light, what is found then, and what random kills find, if they can.
FAULTS: dict[str, tuple[Callable[[Ground], None], str, str | None]] = {
    "acknowledge_before_commit": (acknowledge_and_die, "lost: .* was accepted and is unknown", "lost: .* is unknown"),
    "no_shim": (die_under_long_commands, "overlap: running", "overlap|started twice"),
    "kill_the_group_only": (leave_processes, "left: other", "left: other|overlap"),
    "no_claim_no_in_the_guard late_reports": (report_late, "overlap: retried", "overlap"),
    "no_poison late_shims": (die_before_shims, "overlap: late|started twice: late", None),
}
RANDOM = {mutations: finding for mutations, (_, _, finding) in FAULTS.items() if finding is not None}


def first_word(mutations: str) -> str:
    return mutations.partition(" ")[0]


@pytest.mark.chaos
@pytest.mark.parametrize("mutations", FAULTS, ids=first_word)
def test_a_fault_is_found(tmp_path: Path, mutations: str) -> None:
    scene, finding, _ = FAULTS[mutations]
    hold(findings(tmp_path, mutations, scene), finding)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("faults", "scene"),
    [
        ("", acknowledge_and_die),
        ("", die_under_commands),
        ("", leave_processes),
        ("late_reports", report_late),
        ("late_shims", die_before_shims),
    ],
    ids=["acknowledge", "die", "leave", "late_reports", "late_shims"],
)
def test_without_the_fault_nothing_is_found(tmp_path: Path, faults: str, scene: Callable[[Ground], None]) -> None:
    assert not findings(tmp_path, faults, scene)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("mutations", "finding"), RANDOM.items(), ids=map(first_word, RANDOM))
def test_random_kills_find_the_fault(
    tmp_path: Path, mutations: str, finding: str, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--kill-points") != "all":
        pytest.skip("make chaos runs it")

    def scene(ground: Ground) -> None:
        Chaos(ground, random.Random()).run(KILLS)

    hold(findings(tmp_path, mutations, scene), finding)


def hold(found: list[str], finding: str) -> None:
    seen = any(re.match(finding, text) for text in found)
    tell("faults put in on purpose, and found", asked=1, got=int(seen))
    assert seen, found


def findings(folder: Path, mutations: str, scene: Callable[[Ground], None]) -> list[str]:
    ground = Ground(folder, mutations.split())
    ground.patience_s = 2.0
    try:
        ground.revive()
        scene(ground)
        ended = ground.settle(SETTLED_S, enough=lambda: bool(Evidence(folder).overlaps))
        return ground.findings(ended)
    finally:
        for pid, what in processes_of(ground.home).items():  # the faults leave some
            if "sleep" in what:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        stop_for_certain(ground.daemon)
        eventually(lambda: not processes_of(ground.home))
