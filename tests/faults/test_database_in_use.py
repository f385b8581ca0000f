"""Other programs that use the database at the same time, and what the daemon itself must not do with its files."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

import semtask
from tests.daemon.rig import Daemon, RpcFailed, eventually, running_daemon

_BEGIN = re.compile(r"BEGIN( (DEFERRED|IMMEDIATE|EXCLUSIVE|CONCURRENT))?( TRANSACTION)?;?")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running_daemon(tmp_path / "home") as daemon:
        yield daemon


@contextmanager
def rival(daemon: Daemon, begin: str) -> Iterator[apsw.Connection]:
    with contextlib.closing(apsw.Connection(str(daemon.home / "meta.db"))) as db:
        db.execute(begin)
        yield db


def seconds_of_cpu(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_write_lock_of_another_program_is_told_costs_nothing_and_passes(daemon: Daemon) -> None:
    known = daemon.command("true")
    daemon.wait(known)
    with rival(daemon, "BEGIN IMMEDIATE") as db:
        before, began = seconds_of_cpu(daemon), time.monotonic()
        with pytest.raises(RpcFailed, match="locked") as refused:
            daemon.command("true")
        assert refused.value.code == 4003
        assert refused.value.data["retry_after_ms"] > 0
        assert daemon.job(known)["state"] == "DONE"
        assert (seconds_of_cpu(daemon) - before) / (time.monotonic() - began) < 0.3, "it waits without spinning"
        db.execute("ROLLBACK")
    eventually(lambda: tried(daemon), what="work is taken again")


def tried(daemon: Daemon) -> bool:
    try:
        [job] = daemon.wait(daemon.command("true"))
    except RpcFailed as refused:
        if refused.code != 4003:
            raise
        return False
    return bool(job["state"] == "DONE")


def test_a_reader_that_never_ends_holds_up_nobody_and_the_log_is_seen_to_grow_until_it_has_gone(daemon: Daemon) -> None:
    wal = daemon.home / "meta.db-wal"

    def told() -> float:
        lines = daemon.get("/metrics")[1].decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("semantica_db_wal_bytes"))

    def write(megabytes: int) -> None:
        job = {"job_type": "note", "execution_mode": "IN_PROCESS", "payload": {"text": "x" * 500_000}}
        for _ in range(megabytes):
            daemon.rpc("dev.enqueue_many.v1", jobs=[job] * 2)

    write(1)
    with rival(daemon, "BEGIN") as db:
        assert db.execute("SELECT count(*) FROM jobs").fetchall() == [(2,)]
        write(12)
        size = wal.stat().st_size
        assert size > 12_000_000
        assert told() >= size
        assert db.execute("SELECT count(*) FROM jobs").fetchall() == [(2,)]
    write(12)
    assert wal.stat().st_size < size + 3_000_000, "its pages are used again"
    daemon.rpc("admin.maintenance.v1", force_vacuum=True)
    assert wal.stat().st_size < 1_000_000


def test_the_daemon_keeps_its_locks_on_the_database_whatever_it_is_asked(daemon: Daemon) -> None:
    """POSIX locks go when the process closes any descriptor of the file: a copy or a checksum in passing is enough."""
    shared = os.stat(daemon.home / "meta.db-shm").st_ino

    def held() -> bool:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return any(lock[1] == "POSIX" and int(lock[4]) == daemon.pid and ends(lock[5], shared) for lock in locks)

    assert held()
    daemon.wait(daemon.command("true"))
    for method in ("admin.stats.v1", "queues.list.v1", "workers.list.v1"):
        daemon.rpc(method)
    daemon.rpc("admin.maintenance.v1", force_vacuum=True)
    daemon.get("/metrics")
    assert held()


def ends(place: str, inode: int) -> bool:
    return int(place.split(":")[2]) == inode


def test_there_is_one_sqlite_in_the_daemon(daemon: Daemon) -> None:
    """The one of apsw. Two of them do not see each other's locks."""
    daemon.wait(daemon.command("true"))
    daemon.rpc("admin.maintenance.v1", force_vacuum=True)
    mapped = {line.split()[-1] for line in Path(f"/proc/{daemon.pid}/maps").read_text().splitlines() if "/" in line}
    assert {Path(path).parent.name for path in mapped if "sqlite" in Path(path).name or "apsw" in path} == {"apsw"}


def test_no_module_uses_another_sqlite_copies_files_of_it_or_begins_to_write_late() -> None:
    """A transaction that reads first and writes then can fail with BUSY_SNAPSHOT, for which no wait helps."""
    for path in sorted(Path(semtask.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert "sqlite3" not in imported, path
        if path.parent.name == "store" or path.name == "maintenance.py":
            called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            assert not {name for name in called if name.startswith("shutil.") or name == "open"}, path
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        begun = {text for text in texts if isinstance(text, str) and _BEGIN.fullmatch(text)}
        # A copy is made of what one transaction reads; it writes nothing.
        assert begun <= ({"BEGIN"} if path.name == "sqlite_copy.py" else {"BEGIN IMMEDIATE"}), path
