"""`python -m tests.harness.build`: semtask with kill points and mutations, which the plan in the environment names.

They are put in from outside, when the process starts: by wrapping functions in the daemon, in the launcher (which the
daemon is told to start by another program) and, where their app is imported, in the workers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semtask.daemon.composition import Composition
from semtask.executors import launcher_process
from semtask.store.sqlite_file import SqliteFile
from semtask.store.writer import Request, Tick, Writer
from semtask.workers.process import WorkerSettings
from tests.harness import mutations, points
from tests.harness.points import ENV_PLAN, Plan

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    plan = Plan(os.environ[ENV_PLAN])
    plan.register_daemon()
    launcher_process._PROGRAM = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]; sys.path.append(sys.argv[1]); "
        f"from tests.harness.launcher import main; main(sys.argv[2:], folder={plan.folder!r})"
    )
    _tell_workers(plan)
    mutations.install("daemon", plan.folder)
    points.install("daemon", plan)
    _watch_ticks(plan)
    from semtask.cli.main import main as program

    program()


def _tell_workers(plan: Plan) -> None:
    settings = Composition._worker_settings

    def with_plan(self: Any, env: Any) -> WorkerSettings:
        return settings(self, {**env, ENV_PLAN: plan.folder})

    Composition._worker_settings = with_plan  # type: ignore[method-assign]


def kinds_of(batch: Sequence[Request]) -> list[str]:
    """The methods of the store that the requests come from."""
    return [request.apply.__qualname__.partition(".<locals>")[0].rpartition(".")[2] for request in batch]


def _watch_ticks(plan: Plan) -> None:
    under_way: list[str] = []
    close_books, do_tick, deliver = SqliteFile.close_books, Writer._tick, Writer._deliver

    def reach(kinds: Sequence[str], time: str) -> None:
        for kind in dict.fromkeys(kinds):
            plan.reach(f"daemon.tick.{kind}.{time}")

    def watched_books(self: SqliteFile, tick: Tick) -> None:
        close_books(self, tick)
        reach(under_way, "applied")

    def watched_tick(self: Writer, batch: Sequence[Request], *, synced: bool) -> Any:
        under_way[:] = kinds_of(batch)
        done = do_tick(self, batch, synced=synced)
        reach(under_way, "committed")
        return done

    def watched_delivery(self: Writer, changes: Any, answers: Sequence[tuple[Request, Any]]) -> None:
        deliver(self, changes, answers)
        reach(kinds_of([request for request, _ in answers]), "told")

    SqliteFile.close_books = watched_books  # type: ignore[method-assign]
    Writer._tick = watched_tick  # type: ignore[method-assign]
    Writer._deliver = watched_delivery  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
