"""Migrations: up, down and up again; all or nothing; a backup before."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from semtask.errors import StartupError
from semtask.model.state import State
from semtask.store.migrate import Migration, available, migrate, rollback, status
from semtask.store.sqlite_file import SqliteFile
from semtask.store.sqlite_insert import NewRow, insert_rows
from tests.store.harness import NOW, Harness, new_job

NOTES = Migration(
    2, "notes", "CREATE TABLE notes (text TEXT) STRICT; INSERT INTO notes VALUES ('hello')", "DROP TABLE notes"
)
BROKEN = Migration(3, "broken", "CREATE TABLE more (n INT) STRICT; INSERT INTO nowhere VALUES (1)", "DROP TABLE more")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meta.db"


@pytest.fixture
def db(path: Path) -> Iterator[apsw.Connection]:
    with contextlib.closing(SqliteFile(path).open(now=NOW)) as connection:
        yield connection


def schema(db: apsw.Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in db.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")]


def backups(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.backup"))


def test_up_down_up(db: apsw.Connection, path: Path) -> None:
    """Every migration of this release, one by one, from both sides."""
    migrations = available()
    schemas = {}
    for version in range(len(migrations), -1, -1):
        schemas[version] = schema(db)
        rollback(db, path, to=version - 1, now=NOW + version)
    assert [name for kind, name, _ in schema(db) if kind == "table"] == ["schema_versions"]
    for version in range(1, len(migrations) + 1):
        migrate(db, path, now=NOW, migrations=migrations[:version])
        assert schema(db) == schemas[version]
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_status(db: apsw.Connection) -> None:
    now = status(db, [*available(), NOTES])
    assert now.applied == {1: NOW}
    assert now.pending == [NOTES]
    assert status(db).pending == []


def test_a_database_in_use_is_backed_up_first(db: apsw.Connection, path: Path) -> None:
    insert_rows(db, [NewRow(new_job(), 1, State.QUEUED)])
    backup = migrate(db, path, now=NOW + 1, migrations=[*available(), NOTES])
    assert backups(path) == [backup]
    assert backup is not None
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert db.execute("SELECT text FROM notes").fetchall() == [("hello",)]
    with contextlib.closing(apsw.Connection(str(backup))) as copy:
        assert copy.execute("SELECT count(*) FROM jobs").fetchall() == [(1,)]
        assert not copy.table_exists("main", "notes")
        assert status(copy).applied == {1: NOW}


def test_nothing_to_do_makes_no_backup(db: apsw.Connection, path: Path) -> None:
    assert migrate(db, path, now=NOW) is None
    assert rollback(db, path, to=1, now=NOW) is None
    assert backups(path) == []


async def test_a_backup_opens_as_a_database(path: Path) -> None:
    """As a user would restore it."""
    harness = Harness("sqlite", path.parent)
    async with harness.open() as opened:
        await opened.insert(job := new_job())
    with contextlib.closing(apsw.Connection(str(path))) as db:
        backup = migrate(db, path, now=NOW + 1, migrations=[*available(), NOTES])
    assert backup is not None
    backup.rename(path)
    async with harness.open() as opened:
        assert (await opened.job(job.job_id)).payload == job.payload


def test_a_migration_that_fails_changes_nothing(db: apsw.Connection, path: Path) -> None:
    """The one before it stays."""
    migrate(db, path, now=NOW + 1, migrations=[*available(), NOTES])
    before = schema(db)
    with pytest.raises(StartupError, match=r"003_broken failed and changed nothing: .*nowhere.*backup"):
        migrate(db, path, now=NOW + 2, migrations=[*available(), NOTES, BROKEN])
    assert schema(db) == before
    assert not db.in_transaction
    assert list(status(db, [*available(), NOTES, BROKEN]).applied) == [1, 2]


def test_a_rollback_that_fails_changes_nothing(db: apsw.Connection, path: Path) -> None:
    bad = Migration(2, "notes", NOTES.up, "DROP TABLE notes; DROP TABLE nowhere")
    migrate(db, path, now=NOW + 1, migrations=[*available(), bad])
    before = schema(db)
    with pytest.raises(StartupError, match="002_notes failed"):
        rollback(db, path, to=1, now=NOW + 2, migrations=[*available(), bad])
    assert schema(db) == before
    assert list(status(db, [*available(), bad]).applied) == [1, 2]


def test_a_newer_schema_is_refused(db: apsw.Connection, path: Path) -> None:
    migrate(db, path, now=NOW + 1, migrations=[*available(), NOTES])
    for act in (lambda: status(db), lambda: migrate(db, path, now=NOW), lambda: rollback(db, path, to=0, now=NOW)):
        with pytest.raises(StartupError, match="schema version 2, this semtask knows versions up to 1"):
            act()


def test_a_backup_that_cannot_be_made_stops_the_migration(db: apsw.Connection, path: Path) -> None:
    taken = path.with_name(f"meta.db.v1.{NOW}.backup")
    taken.write_text("precious")
    with pytest.raises(StartupError, match="cannot back up"):
        migrate(db, path, now=NOW, migrations=[*available(), NOTES])
    assert list(status(db, [*available(), NOTES]).applied) == [1]
    assert taken.read_text() == "precious"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["001_a.up.sql"], r"001_a has no \.down\.sql"),
        (["001_a.down.sql"], r"001_a has no \.up\.sql"),
        (["001_a.up.sql", "001_a.down.sql", "003_c.up.sql", "003_c.down.sql"], "not numbered"),
        (["001_a.up.sql", "001_a.down.sql", "001_b.up.sql", "001_b.down.sql"], "not numbered"),
    ],
)
def test_a_broken_set_of_files(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(StartupError, match=message):
        available(tmp_path)


def test_tables_of_another_layout_are_refused_and_left_alone(db: apsw.Connection, path: Path) -> None:
    """Before a release, a migration may change in place."""
    said = f"the database {path} has an older layout: migration 001_initial has changed since it was made"
    [first, *others] = available()
    for sql in (first.up + " -- a comment", first.up.replace(" INTEGER ", "  INTEGER\n")):
        status(db, [Migration(1, first.name, sql, first.down), *others])
    changed = Migration(1, first.name, first.up + ";SELECT 1", first.down)
    with pytest.raises(StartupError, match=said):
        status(db, [changed, *others])
    db.execute("ALTER TABLE schema_versions DROP COLUMN fingerprint")
    before = schema(db)
    db.close()
    with pytest.raises(StartupError, match=f"{said}, and this semtask cannot read it. Move it away"):
        SqliteFile(path).open(now=NOW)
    with contextlib.closing(apsw.Connection(str(path))) as old:
        assert schema(old) == before
    assert backups(path) == []
