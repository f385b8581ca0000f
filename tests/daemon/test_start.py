"""Starting: one daemon for each home and database, and one clear line where it cannot start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.daemon.rig import Daemon, eventually, running_daemon, stop_for_certain


def test_of_twenty_daemons_one_wins_and_the_others_name_it(tmp_path: Path) -> None:
    daemons = [Daemon(tmp_path / "home") for _ in range(20)]
    try:
        processes = [d.spawn() for d in daemons]
        eventually(lambda: sum(p.poll() is None for p in processes) == 1, within=60, what="one is left")
        [winner] = [d for d in daemons if d.process is not None and d.process.poll() is None]
        winner.wait_ready()
        assert {p.returncode for p in processes if p.pid != winner.pid} == {100}
        lines = [line for line in winner.stderr().splitlines() if line.startswith("semtask: ")]
        assert len(lines) == 19
        assert all(f"pid {winner.pid}" in line and "semtask down" in line for line in lines)
        winner.wait(winner.command("true"))
    finally:
        for daemon in daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.terminate()
    eventually(lambda: all(d.process is None or d.process.poll() is not None for d in daemons))


def test_two_homes_cannot_share_one_database(tmp_path: Path) -> None:
    database = tmp_path / "shared" / "meta.db"
    with running_daemon(tmp_path / "one", SEMANTICA_DB_PATH=str(database)) as first:
        second = Daemon(tmp_path / "two", SEMANTICA_DB_PATH=str(database))
        assert second.spawn().wait(20) == 100
        assert f"pid {first.pid}" in second.stderr()
        first.wait(first.command("true"))


def _foreign(home: Path) -> None:
    db = apsw.Connection(str(home / "meta.db"))
    db.execute("create table other(x)")
    db.close()


def _no_database(home: Path) -> None:
    (home / "meta.db").write_text("this is no database, and long enough to be read as one" * 20)


def _read_only(home: Path) -> None:
    home.chmod(0o500)


def _open_to_all(home: Path) -> None:
    home.chmod(0o777)


def _bad_setting(home: Path) -> None:
    (home.parent / "semantica.toml").write_text("rpc_prot = 1\n")


def _newer_schema(home: Path) -> None:
    with running_daemon(home):
        pass
    db = apsw.Connection(str(home / "meta.db"))
    db.execute("insert into schema_versions values (999, 'from_the_future', 0, '')")
    db.close()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_foreign, "meta.db"),
        (_no_database, "meta.db"),
        (_open_to_all, "chmod"),
        (_bad_setting, "rpc_port"),
        (_newer_schema, "newer"),
    ],
)
def test_what_keeps_it_from_starting_is_one_clear_line(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    spoil(home)
    daemon = Daemon(home)
    before = daemon.stderr() if (tmp_path / "home.stderr").exists() else ""
    code = daemon.spawn(cwd=tmp_path).wait(20)
    home.chmod(0o700)
    lines = daemon.stderr()[len(before) :].splitlines()
    assert code not in {0, 100}
    assert len(lines) == 1, lines
    assert lines[0].startswith("semtask: ")
    assert says in lines[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to somebody else and become him")
def test_a_read_only_home_is_refused_for_another_user() -> None:
    """Root may write everywhere, so this needs a user who may not."""
    other: dict[str, Any] = {"user": 54321, "group": 54321, "extra_groups": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            subprocess.run([sys.executable, "-c", "import semtask"], cwd=folder, check=True, **other)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"another user cannot run this Python: {error}")
        home = folder / "home"
        home.mkdir()
        os.chown(home, 54321, 54321)
        home.chmod(0o500)
        daemon = Daemon(home)
        assert daemon.spawn(cwd=folder, **other).wait(20) not in {0, 100}
        [line] = daemon.stderr().splitlines()
    assert line.startswith("semtask: ")
    assert str(home) in line


def test_a_killed_daemon_leaves_nothing_that_hinders_the_next(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "home").start()
    try:
        daemon.kill()
        daemon.start()
        daemon.wait(daemon.command("true"))
    finally:
        stop_for_certain(daemon)


def test_the_files_of_a_home_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with running_daemon(tmp_path / "home") as daemon:
            daemon.wait(daemon.command("echo", "x"))
            for folder, _, files in os.walk(daemon.home):
                assert Path(folder).stat().st_mode & 0o077 == 0, folder
                for name in files:
                    assert (Path(folder) / name).stat().st_mode & 0o077 == 0, name
            assert (daemon.home / "run" / "rpc.sock").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)
