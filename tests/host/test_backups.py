"""Which backup of a database is the newest."""

from __future__ import annotations

import os
from pathlib import Path

from semtask.host.backups import newest, remember, way_back


def made(path: Path, at: int) -> Path:
    path.write_bytes(b"")
    os.utime(path, (at, at))
    return path


def test_the_youngest_that_is_there_counts_wherever_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    database = made(home / "meta.db", 500)
    assert newest(database) is None
    assert "no backup of it is known" in way_back(database)

    old = made(home / "meta.db.v1.100.backup", 100)
    upgraded = made(home / "meta.db.v2.200.backup", 200)
    made(home / "other.db.v2.900.backup", 900)
    assert newest(database) == upgraded

    elsewhere = made(tmp_path / "jobs of mine.db", 300)
    remember(database, elsewhere)
    assert newest(database) == elsewhere
    assert f"semtask db restore '{elsewhere}'" in way_back(database)
    assert (home / "meta.db.last-backup").stat().st_mode & 0o777 == 0o600

    elsewhere.unlink()
    assert newest(database) == upgraded
    upgraded.unlink()
    assert newest(database) == old
