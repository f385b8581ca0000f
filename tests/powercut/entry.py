"""The daemon as it is, recorded, and on demand on a sick machine or with a fault in its code.

TEST_TRACE: the trace to append to. TEST_ILLS: a file that says what fails now (see tests.faults.disk and .launcher).
TEST_MUTATION: the name of a fault (see MUTATIONS), which the harness must find. TEST_DISK_RETRY_S: how long it waits
until it tries a disk again that fails, where that is not as long as in earnest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from semtask.api.connection import Connection
from semtask.api.messages import Response
from semtask.cli.main import main
from semtask.engine import disk
from semtask.executors import launcher_process
from semtask.store.requests import Inserted
from semtask.store.sqlite import SqliteStore, open_store
from semtask.store.sqlite_file import SqliteFile
from semtask.store.writer import Phase, Request, Tick, Writer
from tests.faults.disk import SickDisk
from tests.powercut.trace import Recorder
from tests.powercut.vfs import hook_for_good


def record_answers(recorder: Recorder) -> None:
    real_write = Connection._write

    async def write(self: Connection, response: Response, *, keep_alive: bool) -> None:
        assert isinstance(response.body, bytes)
        recorder.answer(response.body)
        await real_write(self, response, keep_alive=keep_alive)

    Connection._write = write  # type: ignore[method-assign]


def acknowledge_before_commit() -> None:
    """Answer enqueues when their rows are in the transaction, not when it has committed."""
    real_apply = Writer._apply

    def apply(self: Writer, tick: Tick, request: Request) -> Any:
        answer = real_apply(self, tick, request)
        if isinstance(answer, list) and answer and isinstance(answer[0], Inserted):
            self._tell(None, [(request, answer)])
        return answer

    Writer._apply = apply  # type: ignore[method-assign]


def relax_inserts() -> None:
    """Commit them without fsync, as if all were asked for with durability=os."""
    real_insert = SqliteStore.insert

    async def insert(self: SqliteStore, jobs: Any, *, durable: bool) -> Any:
        return await real_insert(self, jobs, durable=False)

    SqliteStore.insert = insert  # type: ignore[method-assign]


def relax_finishes() -> None:
    """Commit ends without fsync."""
    real_submit = Writer.submit

    def submit(self: Writer, apply: Any, *, phase: Phase = Phase.CHANGE, relaxed: bool = False, rows: int = 1) -> Any:
        return real_submit(self, apply, phase=phase, relaxed=relaxed or phase is Phase.FINISH, rows=rows)

    Writer.submit = submit  # type: ignore[method-assign]


def trust_failed_syncs() -> None:
    """Go on after a failed fsync as if nothing had been given up."""

    def write_log_again(self: SqliteFile) -> None:
        self.distrusted = False

    SqliteFile.write_log_again = write_log_again  # type: ignore[method-assign]


MUTATIONS = {
    "acknowledge_before_commit": acknowledge_before_commit,
    "relax_inserts": relax_inserts,
    "relax_finishes": relax_finishes,
    "trust_failed_syncs": trust_failed_syncs,
}


def hurry(retry_s: float) -> None:
    defaults = open_store.__kwdefaults__
    assert defaults is not None
    defaults["disk_retry_s"] = retry_s
    disk.CHECK_PAUSES_S = tuple(pause * retry_s for pause in disk.CHECK_PAUSES_S)


def spoil_launcher(ills: str) -> None:
    root = str(Path(__file__).resolve().parents[2])
    launcher_process._PROGRAM = (
        f"import sys; sys.path[:0] = [{root!r}]; sys.path.append(sys.argv[1]); "
        f"from tests.faults.launcher import main; main(sys.argv[2:], ills={ills!r})"
    )


def record(trace: Path, ills: Path) -> None:
    home = Path(os.environ["SEMANTICA_HOME"])
    recorder = Recorder(trace, home)
    for name in ("meta.db", "meta.db-wal"):
        if (home / name).exists():
            recorder.state(home / name)
    hook_for_good(SickDisk(ills, recorder))
    record_answers(recorder)


if __name__ == "__main__":
    record(Path(os.environ["TEST_TRACE"]), Path(os.environ["TEST_ILLS"]))
    spoil_launcher(os.environ["TEST_ILLS"])
    if mutation := os.environ.get("TEST_MUTATION"):
        MUTATIONS[mutation]()
    if retry_s := os.environ.get("TEST_DISK_RETRY_S"):
        hurry(float(retry_s))
    sys.argv = ["semtask", "daemon"]
    main()
