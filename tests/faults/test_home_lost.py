"""The home is deleted, moved or replaced under a running daemon: it says so and ends, with nothing left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.daemon.rig import Daemon, alive, eventually, running_daemon, stop_for_certain

EXIT_HOME_LOST = 72


def _move(home: Path) -> None:
    home.rename(home.with_name("elsewhere"))


def _replace(home: Path) -> None:
    _move(home)
    shutil.copytree(home.with_name("elsewhere"), home, ignore=shutil.ignore_patterns("*.sock"))


def _delete_run_folder(home: Path) -> None:
    shutil.rmtree(home / "run")


def _delete_socket(home: Path) -> None:
    (home / "run" / "rpc.sock").unlink()


def _delete_database(home: Path) -> None:
    (home / "meta.db").unlink()


def _replace_database(home: Path) -> None:
    shutil.copy(home / "meta.db", home / "copy")
    (home / "copy").rename(home / "meta.db")


SPOILT: dict[Callable[[Path], None], str] = {
    _move: "home is gone",
    _replace: "home was replaced",
    _delete_run_folder: "run is gone",
    _delete_socket: "rpc.sock is gone",
    _delete_database: "meta.db is gone",
    _replace_database: "meta.db was replaced",
}


def test_a_daemon_that_has_lost_its_home_says_so_and_ends(tmp_path: Path) -> None:
    """Side by side, as each of them looks at its home every few seconds only."""
    daemons = {spoil: Daemon(tmp_path / spoil.__name__ / "home") for spoil in SPOILT}
    try:
        for daemon in daemons.values():
            daemon.home.parent.mkdir()
            daemon.spawn()
        for spoil, daemon in daemons.items():
            daemon.wait_ready()
            daemon.wait(daemon.command("true"))
            spoil(daemon.home)
        for spoil, daemon in daemons.items():
            gives_up(daemon, SPOILT[spoil])
    finally:
        for daemon in daemons.values():
            stop_for_certain(daemon)


def test_what_runs_ends_with_it(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "home").start()
    try:
        job_id = daemon.command("sleep", "600")
        pid = eventually(lambda: daemon.job(job_id)["pid"])
        shutil.rmtree(daemon.home)
        gives_up(daemon, "home is gone")
        eventually(lambda: not alive(pid), what="the command has ended")
    finally:
        stop_for_certain(daemon)


def gives_up(daemon: Daemon, says: str) -> None:
    assert daemon.process is not None
    assert daemon.process.wait(20) == EXIT_HOME_LOST
    [line] = [line for line in daemon.stderr().splitlines() if "CRITICAL" in line]
    assert says in line
    assert "start semtask again" in line
    assert "Traceback" not in daemon.stderr()


def test_what_comes_back_at_once_is_no_loss(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        daemon.home.rename(tmp_path / "aside")
        (tmp_path / "aside").rename(daemon.home)
        assert daemon.wait(daemon.command("true"))[0]["state"] == "DONE"
