from __future__ import annotations

from pathlib import Path

import pytest

from tests import figures


def test_the_figures_of_several_processes_are_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures"
    monkeypatch.setenv(figures.FILE, str(path))
    figures.tell("kills", asked=500, got=1502)
    for found in (1, 0, 1):
        figures.tell("faults put in", asked=1, got=found)
    figures.tell("  a client waits", asked="< 50 ms", got="< 9.5 ms")
    assert figures.table(path).splitlines() == [
        "what              asked    got",
        "kills             500      1,502",
        "faults put in     3        2",
        "  a client waits  < 50 ms  < 9.5 ms",
    ]
