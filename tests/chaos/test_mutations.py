"""A harness that cannot fail proves nothing: each of these faults, put into a test build, must be found."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.rig import eventually, processes_of, stop_for_certain
from tests.harness.ground import Ground
from tests.harness.load import Planned


def leave_processes(ground: Ground) -> None:
    ground.enqueue(Planned("left", "command", seconds=0.05, flags="leave"))


def acknowledge_and_die(ground: Ground) -> None:
    """The daemon is killed as soon as it has answered."""
    for number in range(5):
        ground.enqueue(Planned(f"acknowledged{number}", "command"))
        ground.restart()


def die_under_commands(ground: Ground) -> None:
    jobs = [Planned(f"running{n}", "command", once=n == 0, seconds=1.5) for n in range(2)]
    ground.enqueue(*jobs)
    ground.await_start(*jobs)
    ground.restart()


def report_late(ground: Ground) -> None:
    ground.enqueue(*(Planned(f"retried{n}", "command", seconds=0.5, flags="fail") for n in range(4)))


FAULTS = (
    ("acknowledge_before_commit", acknowledge_and_die, "lost: acknowledged"),
    ("no_shim", die_under_commands, "overlap: running"),
    ("kill_the_group_only", leave_processes, "left: other"),
    ("no_claim_no_in_the_guard late_reports", report_late, "overlap: retried"),
)


@pytest.mark.chaos
@pytest.mark.parametrize(("mutations", "scene", "finding"), FAULTS, ids=[fault[0].split()[0] for fault in FAULTS])
def test_a_fault_is_found(tmp_path: Path, mutations: str, scene: Callable[[Ground], None], finding: str) -> None:
    found = findings(tmp_path, mutations, scene)
    assert any(text.startswith(finding) for text in found), found


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("faults", "scene"),
    [("", acknowledge_and_die), ("", die_under_commands), ("", leave_processes), ("late_reports", report_late)],
    ids=["acknowledge", "die", "leave", "late_reports"],
)
def test_without_the_fault_nothing_is_found(tmp_path: Path, faults: str, scene: Callable[[Ground], None]) -> None:
    assert not findings(tmp_path, faults, scene)


def findings(folder: Path, mutations: str, scene: Callable[[Ground], None]) -> list[str]:
    ground = Ground(folder, mutations.split())
    ground.patience_s = 2.0
    try:
        ground.revive()
        scene(ground)
        return ground.findings(ground.settle(5.0 if mutations else 30.0))
    finally:
        for pid, what in processes_of(ground.home).items():  # the faults leave some
            if "sleep" in what:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        stop_for_certain(ground.daemon)
        eventually(lambda: not processes_of(ground.home))
