"""Run in the launcher of a test build before its own program: see build.py."""

from __future__ import annotations

from semtask.executors import launcher
from tests.harness import mutations, points


def main(scratch: str, *fds: str, folder: str) -> None:
    plan = points.Plan(folder)
    mutations.install("launcher", plan.folder)
    points.install("launcher", plan)
    points.install_in_shims(plan)
    control, daemon, notices = map(int, fds)
    launcher.main(control, daemon, notices, scratch)
