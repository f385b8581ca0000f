"""Facts of SQLite only: what open_store makes, and what it refuses with one clear line."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from semtask.errors import StartupError
from semtask.store.migrate import APPLICATION_ID
from semtask.store.sqlite_file import require_sound_sqlite
from tests.store.conftest import Tmpfs
from tests.store.harness import Harness, new_job


async def refused(path: Path) -> str:
    harness = Harness("sqlite", path.parent)
    harness.path = path
    with pytest.raises(StartupError) as caught:
        async with harness.open():
            pass
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("version", ["3.51.3", "3.51.10", "3.52.0", "4.0.0", "3.50.7", "3.50.12", "3.44.6"])
def test_a_sound_sqlite(version: str) -> None:
    require_sound_sqlite(version)


@pytest.mark.parametrize("version", ["3.51.2", "3.51.0", "3.50.6", "3.49.2", "3.45.0", "3.44.5", "3.40.1"])
def test_a_sqlite_with_the_wal_reset_bug(version: str) -> None:
    with pytest.raises(StartupError, match=rf"{version}.*apsw 3\.51\.3"):
        require_sound_sqlite(version)


async def test_the_gate_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.45.1")
    assert "3.45.1" in await refused(tmp_path / "meta.db")
    assert not list(tmp_path.iterdir())


async def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        async with Harness("sqlite", tmp_path).open() as opened:
            await opened.insert(new_job())
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(umask)
    assert modes == {"meta.db": 0o600, "meta.db-wal": 0o600, "meta.db-shm": 0o600}
    assert [path.name for path in tmp_path.iterdir()] == ["meta.db"]  # a clean close leaves one file


async def test_settings_of_the_connections(tmp_path: Path) -> None:
    async with Harness("sqlite", tmp_path).open() as opened:
        store: object = opened.store
        settings = ("journal_mode", "foreign_keys", "trusted_schema", "mmap_size", "wal_autocheckpoint", "query_only")

        def read(db: apsw.Connection) -> list[object]:
            return [*(db.pragma(name) for name in settings), db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, -1)]

        written = await store._writer.submit(lambda tick: read(tick.db))  # type: ignore[attr-defined]
        reader = await store._readers.run(read)  # type: ignore[attr-defined]
    assert written == ["wal", 1, 0, 0, 0, 0, 1]  # it moves the log by a hook of its own
    assert reader == ["wal", 1, 0, 0, 0, 1, 1]
    with contextlib.closing(apsw.Connection(str(tmp_path / "meta.db"))) as db:
        assert db.pragma("application_id") == APPLICATION_ID


async def test_the_log_moves_into_the_database_by_itself(tmp_path: Path) -> None:
    async with Harness("sqlite", tmp_path).open() as opened:
        await opened.insert(*(new_job(payload='"%s"' % ("x" * 100_000)) for _ in range(60)))
        assert (tmp_path / "meta.db").stat().st_size > 5_000_000
        assert (tmp_path / "meta.db-wal").stat().st_size > 5_000_000
        await opened.insert(new_job())
        assert (tmp_path / "meta.db-wal").stat().st_size < 8_000_000  # begun anew, not appended to


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are my notes, and not a database.\n" * 100)
    before = path.read_bytes()
    assert "no SQLite database" in await refused(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("application_id", [0, 252006673])
async def test_a_database_of_another_program(tmp_path: Path, application_id: int) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.execute(f"PRAGMA application_id = {application_id}; CREATE TABLE notes (text TEXT)")
    before = path.read_bytes()
    assert "another program" in await refused(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.db"]


async def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "meta.db").touch()
    async with Harness("sqlite", tmp_path).open() as opened:
        assert opened.store.daemon_epoch == 1


async def test_a_database_that_has_lost_its_own_row(tmp_path: Path) -> None:
    harness = Harness("sqlite", tmp_path)
    async with harness.open():
        pass
    with contextlib.closing(apsw.Connection(str(harness.path))) as db:
        db.execute("DELETE FROM meta")
    assert "is damaged" in await refused(harness.path)


async def test_a_newer_schema(tmp_path: Path) -> None:
    harness = Harness("sqlite", tmp_path)
    async with harness.open():
        pass
    with contextlib.closing(apsw.Connection(str(harness.path))) as db:
        db.execute("INSERT INTO schema_versions VALUES (99, 'future', 0, '')")
    message = await refused(harness.path)
    assert "version 99" in message
    assert "newer semtask" in message
    with contextlib.closing(apsw.Connection(str(harness.path))) as db:
        assert db.execute("SELECT daemon_epoch FROM meta").fetchall() == [(1,)]


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in await refused(tmp_path / "none" / "meta.db")


async def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "meta.db").mkdir()
    assert "cannot open" in await refused(tmp_path / "meta.db")


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


@pytest.mark.parametrize("existing", [False, True])
async def test_a_folder_that_is_not_writable(tmp_path: Path, tmpfs: Tmpfs, existing: bool) -> None:
    with tmpfs("4m") as folder:
        if existing:
            async with Harness("sqlite", folder).open():
                pass
        remount(folder, "ro")
        message = await refused(folder / "meta.db")
        remount(folder, "rw")
    assert "Read-only file system" in message or "not writable" in message


async def test_a_full_disk(tmpfs: Tmpfs) -> None:
    with tmpfs("64k") as folder:
        message = await refused(folder / "meta.db")
    assert "the disk is full" in message


@contextlib.contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    script = f"""
import apsw
db = apsw.Connection({str(path)!r})
db.execute("BEGIN IMMEDIATE; UPDATE meta SET next_seq = next_seq").fetchall()
print("locked", flush=True)
input()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield
        process.communicate("")


async def test_a_database_that_is_locked(tmp_path: Path) -> None:
    harness = Harness("sqlite", tmp_path)
    async with harness.open():
        pass
    with locked_by_another_process(harness.path):
        assert "another process" in await refused(harness.path)
    async with harness.open() as opened:
        assert opened.store.daemon_epoch == 2
