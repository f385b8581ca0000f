"""Run in the launcher of a test build before its own program: see build.py."""

from __future__ import annotations

from collections.abc import Sequence

from semtask.launch import launcher
from tests.harness import mutations, points


def main(arguments: Sequence[str], folder: str) -> None:
    plan = points.Plan(folder)
    mutations.install("launcher", plan.folder)
    points.install("launcher", plan)
    points.install_in_shims(plan)
    launcher.main(arguments)
