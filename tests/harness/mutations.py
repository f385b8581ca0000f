"""Faults of the kind that a harness must catch, to be put into a test build. A harness that misses one is broken.

The names stand in the file `mutations` of the plan's folder. Standard library only, as launchers import it.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

GO = "go"  # the file in the plan's folder that late shims wait for
SLOW_S = 0.3

MUTATIONS: dict[str, tuple[str, Callable[[str], None]]] = {}


def install(process: str, folder: str) -> None:
    path = Path(folder) / "mutations"
    for name in path.read_text().split() if path.exists() else ():
        where, change = MUTATIONS[name]
        if where == process:
            change(folder)


def _mutation(process: str) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    """The function gets the folder of the plan."""

    def add(change: Callable[[str], None]) -> Callable[[str], None]:
        MUTATIONS[change.__name__] = process, change
        return change

    return add


def _rewrite(owner: Any, name: str, old: str, new: str) -> None:
    """Replace a piece of the source of a function, and the function by that."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has changed: it does not say {old!r} once"
    names: dict[str, Any] = {}
    exec(source.replace(old, new), vars(sys.modules[function.__module__]), names)
    setattr(owner, name, names[name])


@_mutation("daemon")
def acknowledge_before_commit(_folder: str) -> None:
    """What is stored is told a moment before it is."""
    from semtask.store.writer import Writer

    old = 'self._db.execute("COMMIT")\n'
    new = f"self._tell(tick.changes, answers); import time; time.sleep(0.05); {old}        return [], []\n"
    _rewrite(Writer, "_tick", f"{old}    except", f"{new}    except")


@_mutation("launcher")
def no_shim(_folder: str) -> None:
    """The command is run directly: nobody holds its lock, notes its start, ends its tree or notices a dead daemon."""
    import os
    import time

    from semtask.launch import command, folder, shim

    original = shim.run

    def run(task: shim.Task) -> int:
        if task.passed:
            return original(task)
        os.dup2(task.stdout, 1)
        os.dup2(task.stderr, 2)
        began = time.time_ns() // 1_000_000
        _, status = os.waitpid(command.start(task.specification, task.signal_mask).pid, 0)
        ended = time.time_ns() // 1_000_000
        record = folder.encode_record(folder.Record(status, "", began, ended, 0, 0, ""))
        folder.replace_at(task.folder, folder.RECORD, record)
        return 0

    shim.run = run


@_mutation("launcher")
def kill_the_group_only(_folder: str) -> None:
    """What has left the process group of the command is not looked for."""
    from semtask.launch import shim

    def end_tree(self: Any) -> None:
        import os
        import signal
        from contextlib import suppress

        with suppress(ProcessLookupError):
            os.killpg(self.command_pid, signal.SIGKILL)
        while self._status is None:
            self._reap()

    shim._Attempt._end_tree = end_tree  # type: ignore[method-assign]


@_mutation("daemon")
def no_claim_no_in_the_guard(_folder: str) -> None:
    """The end of an attempt counts for whichever attempt of its job runs now."""
    from semtask.store import sql, sqlite_finish

    def unguarded(name: str) -> str:
        text = sql.query(name)
        for guard in ("AND claim_no = :claim_no ", "AND claim_no = report.value ->> 1 "):
            text = text.replace(guard, "")
        return text

    vars(sqlite_finish)["query"] = unguarded


@_mutation("daemon")
def late_reports(_folder: str) -> None:
    """No fault of ours, but one that the guard is for: the end of each attempt is reported again in the next one."""
    from semtask.store.sqlite import SqliteStore

    ends: dict[str, Any] = {}
    original, claim = SqliteStore.finish, SqliteStore.claim

    async def finish_and_remember(self: SqliteStore, finish: Any) -> Any:
        ends[finish.job_id] = finish
        return await original(self, finish)

    async def claim_and_repeat(self: SqliteStore, request: Any) -> Any:
        jobs = await claim(self, request)
        for job in jobs:
            if job.job_id in ends:
                await original(self, ends.pop(job.job_id))
        return jobs

    SqliteStore.finish = finish_and_remember  # type: ignore[method-assign]
    SqliteStore.claim = claim_and_repeat  # type: ignore[method-assign]


@_mutation("daemon")
def what_may_start_once_is_started_again(_folder: str) -> None:
    """After an interruption, as if on_interrupt were always `requeue`."""
    from semtask.model import retry

    _rewrite(retry, "_interrupted", "job.on_interrupt is OnInterrupt.FAIL", "False")


@_mutation("launcher")
def no_poison(_folder: str) -> None:
    """A shim that comes to its lock does not ask whether its claim was given up meanwhile."""
    from semtask.launch import shim

    _rewrite(shim, "run", "folder.exists_at(task.folder, folder.POISON) or os.fstat(lock).st_nlink == 0", "False")


@_mutation("launcher")
def late_shims(folder: str) -> None:
    """No fault of ours, but what poison is for: a shim gets its lock long after it was asked for, and stays slow."""
    import os
    import time

    from semtask.launch import shim

    launcher, original = os.getpid(), shim.run

    def run(task: shim.Task) -> int:
        if os.getpid() != launcher and not task.passed:
            take, begin_stop = shim._take, shim._Attempt._begin_stop

            def take_late(lock: int) -> bool:
                while not os.path.exists(f"{folder}/{GO}"):
                    time.sleep(0.01)
                return take(lock)

            def begin_stop_late(self: shim._Attempt, stop: Any) -> None:
                time.sleep(SLOW_S)  # its daemon is dead: without this the command often had no time to bear witness
                begin_stop(self, stop)

            shim._take = take_late
            shim._Attempt._begin_stop = begin_stop_late  # type: ignore[method-assign]
        return original(task)

    shim.run = run
