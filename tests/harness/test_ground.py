"""The harness itself: what it does with a daemon that cannot start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon.rig import Daemon
from tests.harness.crew import Case, Crew
from tests.harness.ground import Ground, TestBuild


class Broken(Daemon):
    entry = ("semtask", "daemon", "--no-such-option")


def test_a_daemon_that_never_starts_is_given_up_with_what_it_says(tmp_path: Path) -> None:
    ground = Ground(tmp_path / "ground", build=Broken)
    with pytest.raises(AssertionError, match="--no-such-option"):
        ground.revive()
    assert ground.deaths == 4


def test_a_crew_reports_a_daemon_that_never_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TestBuild, "entry", Broken.entry)
    crew = Crew(tmp_path, [Case("shim.run.before")], size=2)
    crew.run()
    assert len(crew.failures) == 2
    assert all("--no-such-option" in failure for failure in crew.failures)
