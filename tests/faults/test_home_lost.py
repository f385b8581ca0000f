"""Something of the home is deleted, moved or replaced under a running daemon.

Every file and folder of a home is in one of two lists: after its loss the daemon says so and ends with nothing left, or
it goes on and what is needed is made again.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.rig import Shell
from tests.daemon.rig import Daemon, alive, eventually, running_daemon, stop_for_certain

EXIT_HOME_LOST = 72


def _move(home: Path) -> None:
    home.rename(home.with_name("elsewhere"))


def _replace(home: Path) -> None:
    _move(home)
    shutil.copytree(home.with_name("elsewhere"), home, ignore=shutil.ignore_patterns("*.sock", "attempts"))


def _delete_database(home: Path) -> None:
    (home / "meta.db").unlink()


def _replace_database(home: Path) -> None:
    shutil.copy(home / "meta.db", home / "copy")
    (home / "copy").rename(home / "meta.db")


def _delete_wal(home: Path) -> None:
    (home / "meta.db-wal").unlink()


def _delete_shm(home: Path) -> None:
    (home / "meta.db-shm").unlink()


def _put_a_folder_in_place_of_the_socket(home: Path) -> None:
    (home / "run" / "rpc.sock").unlink()
    (home / "run" / "rpc.sock").mkdir()


def _put_a_file_in_place_of_the_run_folder(home: Path) -> None:
    delete(home / "run")
    (home / "run").touch()


SPOILT: dict[Callable[[Path], None], str] = {
    _move: "home is gone",
    _replace: "home was replaced",
    _delete_database: "meta.db is gone",
    _replace_database: "meta.db was replaced",
    _delete_wal: "meta.db-wal is gone",
    _delete_shm: "meta.db-shm is gone",
    _put_a_folder_in_place_of_the_socket: "rpc.sock is in the way: it is no socket",
    _put_a_file_in_place_of_the_run_folder: "cannot use the folder",
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
        assert not (tmp_path / "_move" / "home").exists()  # nothing made it again
    finally:
        for daemon in daemons.values():
            stop_for_certain(daemon)


def test_what_runs_ends_with_it(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "home").start()
    try:
        job_id = daemon.command("sleep", "600")
        pid = eventually(lambda: daemon.job(job_id)["pid"])
        delete(daemon.home)
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


# --- what the daemon goes on without ---------------------------------------------------------------------------------

# In this order, a folder after what is in it. What is made again by the next job, or within seconds, is True.
GOES_ON: dict[str, bool] = {
    "run/rpc.sock": True,
    "run/token": True,
    "run": True,
    "logs/daemon.log": True,
    "logs/daemon.out": False,  # by the next start
    "logs/jobs": True,
    "logs": True,
    "attempts/.id": False,  # by the next start, which then takes no claim of before for one that never ran
    "attempts/.spare": False,
    "attempts/.trash": False,
    "attempts": True,
    "artifacts": False,  # with the next one
    "ballast": False,  # by the next start
    "apps.json": False,
    "config.toml": False,
    "commands.toml": False,
    "tokens.json": False,
}
ENDS = {"meta.db", "meta.db-wal", "meta.db-shm"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("partly") / "home"
    with running_daemon(home, SEMANTICA_TCP="on", SEMANTICA_RPC_PORT="0") as daemon:
        for name, text in (
            ("apps.json", '{"apps": {}}'),
            ("config.toml", ""),
            ("commands.toml", 'allow = [["true"], ["echo"], ["sh"]]'),
            ("tokens.json", '{"tokens": {}}'),
            ("logs/daemon.out", ""),  # of a daemon that a client has started
        ):
            (home / name).write_text(text)
            (home / name).chmod(0o600)
        (home / "artifacts").mkdir(exist_ok=True)
        yield daemon


def test_the_lists_have_everything_that_is_in_a_home(daemon: Daemon) -> None:
    daemon.wait(daemon.command("true"))
    eventually((daemon.home / "ballast").exists, what="the reserve is made")
    found = {path.name for path in daemon.home.iterdir()}
    for folder in ("run", "logs", "attempts"):
        found |= {f"{folder}/{path.name}" for path in (daemon.home / folder).iterdir()}
    of_one_job = {name for name in found if name.startswith("attempts/0")}
    assert found - of_one_job == GOES_ON.keys() | ENDS


@pytest.mark.parametrize("name", GOES_ON)
def test_a_daemon_goes_on_without(daemon: Daemon, name: str) -> None:
    """With a command under way, whose row must have its end; without the folder of its attempt that is not known."""
    gate = daemon.home.parent / f"{name.replace('/', '-')}.go"
    under_way = daemon.command("sh", "-c", f"while ! test -e {gate}; do sleep 0.05; done; echo late; exit 3")
    eventually(lambda: daemon.job(under_way)["pid"], what="it runs")
    path = daemon.home / name
    try:
        delete(path)
        eventually(lambda: reachable(daemon), what="it is reachable")
        [after] = daemon.wait(daemon.command("echo", "after"))
        assert (after["state"], daemon.log(after["job_id"])) == ("DONE", "after\n")
    finally:
        gate.touch()
    [job] = daemon.wait(under_way)
    end = ("FAILED", "worker_crash", None) if name == "attempts" else ("FAILED", "exit_code", 3)
    assert (job["state"], job["end_cause"], job["exit_code"]) == end
    assert daemon.process is not None
    assert daemon.process.poll() is None
    if GOES_ON[name]:
        eventually(path.exists, what=f"{name} is made again")
    if name in {"run", "run/token"}:
        eventually((daemon.home / "run" / "token").exists, what="the token is there")
        assert (daemon.home / "run" / "token").stat().st_mode & 0o777 == 0o600


def delete(path: Path) -> None:
    """A file or a folder in which the daemon may make something meanwhile."""
    if not path.is_dir():
        path.unlink()
        return
    while True:
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.ENOENT}:
                raise
            if not path.exists():
                return


def reachable(daemon: Daemon) -> bool:
    try:
        return daemon.get("/healthz")[0] == 200
    except OSError:
        return False


def test_the_token_is_the_same_one_again(daemon: Daemon) -> None:
    token = daemon.home / "run" / "token"
    before = token.read_text()
    token.unlink()
    eventually(token.exists, what="the token is there again")
    assert token.read_text() == before


def test_a_line_that_is_logged_after_the_loss_of_the_log_is_in_the_new_one(daemon: Daemon) -> None:
    delete(daemon.home / "logs")
    job_id = daemon.command("true")
    daemon.wait(job_id)
    log = daemon.home / "logs" / "daemon.log"
    eventually(lambda: log.exists() and job_id in log.read_text(), what="the end of the attempt is logged")
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700


def test_a_deleted_socket_is_made_again_and_open_connections_stay(daemon: Daemon) -> None:
    path = daemon.home / "run" / "rpc.sock"
    with socket.socket(socket.AF_UNIX) as kept:
        kept.connect(str(path))
        request = b'{"jsonrpc":"2.0","id":1,"method":"dev.query_jobs.v1","params":{"limit":1}}'
        head = b"POST /rpc HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        kept.sendall(head % len(request) + request)
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
        path.unlink()
        eventually(path.exists, what="the socket is there again")
        assert path.stat().st_mode & 0o777 == 0o600
        kept.sendall(head % len(request) + request)
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
    log = (daemon.home / "logs" / "daemon.log").read_text()
    assert "rpc.sock was gone or replaced, and was made again" in log


# --- the socket is gone, and nobody has seen it yet ------------------------------------------------------------------


def test_up_and_down_agree_while_there_is_no_socket(tmp_path: Path) -> None:
    """The daemon is held up, so that it cannot make the socket again before they look."""
    shell = Shell(tmp_path / "home")
    try:
        assert shell("up").code == 0
        pid = shell.daemon_pid()
        (shell.home / "run" / "rpc.sock").unlink()
        up = shell("up")
        assert (up.code, f"running (pid {pid}," in up.out) == (0, True), up
        (shell.home / "run" / "rpc.sock").unlink()
        down = shell("down", "--json")
        assert down.json == {"schema": "down.v1", "pid": pid, "stopped": True, "running_jobs": None}
        assert not alive(pid)
        again = shell("down")
        assert (again.code, "there is nothing to stop" in again.err) == (3, True), again
    finally:
        shell.stop()


def test_down_signals_nobody_but_the_daemon_of_this_home(tmp_path: Path) -> None:
    """`semtask db` locks a home, too."""
    import fcntl

    shell = Shell(tmp_path / "home")
    shell.home.mkdir(mode=0o700)
    fd = os.open(shell.home, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        down = shell("down")
        examined = shell("doctor").out
    finally:
        os.close(fd)
    assert f"process {os.getpid()} has locked the home" in examined
    assert down.code == 3
    assert f"process {os.getpid()} is at work on the home, and is no daemon" in down.err
