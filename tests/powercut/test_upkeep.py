"""A power cut while a schema is migrated, while history is deleted and while the file is made smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from semtask.store import migrate as migrations
from semtask.store.migrate import APPLICATION_ID, Migration
from tests.powercut.trace import Recorder
from tests.powercut.upkeep import cleaning, migration

IMAGES = 72
SEED = 7


def test_a_migration_leaves_the_old_schema_or_the_new_one_and_a_whole_backup(tmp_path: Path) -> None:
    old, new, wrong = migration(tmp_path, IMAGES, SEED)
    assert not wrong
    assert old >= 10
    assert new >= 10


def test_the_harness_sees_a_migration_outside_of_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = migrations._run

    def run(db: apsw.Connection, migration: Migration, script: str, backup: Path | None) -> None:
        if migration.version == 1:
            real(db, migration, script, backup)
            return
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(script).fetchall()
        db.execute("BEGIN IMMEDIATE")

    monkeypatch.setattr(migrations, "_run", run)
    _, _, wrong = migration(tmp_path, IMAGES, SEED)
    assert len(wrong) >= 10


def test_deleting_history_and_shrinking_the_file_harm_nothing(tmp_path: Path) -> None:
    assert not cleaning(tmp_path, IMAGES, SEED)


class _Lying(Recorder):
    """A disk on which nothing is synced: as PRAGMA synchronous = OFF, or firmware that only says so."""

    def sync(self, path: str, do: Callable[[], int]) -> int:
        return do()


def test_the_harness_sees_missing_syncs(tmp_path: Path) -> None:
    assert cleaning(tmp_path, IMAGES, SEED, _Lying)
