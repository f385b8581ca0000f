"""Sockets and token: modes, owners, and what may lie in their place."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from semtask.api import listeners
from semtask.errors import StartupError
from tests.api.running import Running, running

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

# Connects as another user and prints what it sees: an error of connect, or the first line of the answer.
FOREIGNER = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
try:
    sock.connect("run/rpc.sock")
except OSError as error:
    print(type(error).__name__)
    sys.exit()
sock.sendall(b"POST /rpc HTTP/1.1\\r\\nContent-Type: application/json\\r\\nContent-Length: 50\\r\\n\\r\\n")
sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1"}')
print(sock.recv(4096).split(b"\\r\\n")[0].decode())
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_socket_and_folder_are_private_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        with running(home) as server:
            assert stat.S_ISSOCK(server.settings.socket.lstat().st_mode)
            assert mode(server.settings.socket) == 0o600
            assert mode(server.settings.run_dir) == 0o700
    finally:
        os.umask(before)
    assert not server.settings.socket.exists()


def test_an_open_folder_is_closed(home: Path) -> None:
    home.mkdir()
    (home / "run").mkdir()
    (home / "run").chmod(0o777)
    with running(home) as server:
        assert mode(server.settings.run_dir) == 0o700


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120) / ("y" * 120)
    home.mkdir(parents=True)
    with running(home) as server:
        assert len(str(server.settings.socket)) > 240
        folder = os.open(server.settings.run_dir, os.O_RDONLY)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"/proc/self/fd/{folder}/rpc.sock")
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK")
        sock.close()
        os.close(folder)
    assert not os.path.lexists(server.settings.socket)


def test_the_socket_of_a_dead_daemon_is_replaced(home: Path) -> None:
    (home / "run").mkdir(parents=True, mode=0o700)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(home / "run" / "rpc.sock"))
    dead.close()
    with running(home) as server, server.unix() as peer:
        assert peer.rpc("admin.stats.v1").status == 200


def test_closing_leaves_the_socket_of_a_successor_alone(home: Path) -> None:
    with running(home) as server:
        server.settings.socket.unlink()
        successor = listeners.listen_unix(server.settings.socket)
    assert server.settings.socket.exists()
    successor.close()


def squat(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/nowhere")
    elif kind == "link to a socket":
        other = path.with_name("other.sock")
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(other))
        sock.close()
        path.symlink_to(other)
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "link to a socket", "pipe"])
def test_what_lies_in_the_place_of_the_socket_is_refused_and_kept(home: Path, kind: str) -> None:
    (home / "run").mkdir(parents=True, mode=0o700)
    path = home / "run" / "rpc.sock"
    squat(path, kind)
    with pytest.raises(StartupError) as caught:
        listeners.listen_unix(path)
    assert str(path) in caught.value.message
    assert "remove it" in caught.value.message
    assert "\n" not in caught.value.message
    assert os.path.lexists(path)


def test_a_linked_folder_is_refused(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (home / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartupError, match="symbolic link"):
        listeners.listen_unix(home / "run" / "rpc.sock")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@as_root
def test_what_belongs_to_another_user_is_refused(home: Path) -> None:
    (home / "run").mkdir(parents=True, mode=0o700)
    path = home / "run" / "rpc.sock"
    foreign = socket.socket(socket.AF_UNIX)
    foreign.bind(str(path))
    foreign.close()
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(StartupError, match=f"belongs to user {NOBODY}"):
        listeners.listen_unix(path)
    path.unlink()
    os.chown(home / "run", NOBODY, NOBODY)
    with pytest.raises(StartupError, match=f"belongs to user {NOBODY}"):
        listeners.listen_unix(path)


def foreigner(server: Running) -> str:
    command = [sys.executable, "-I", "-S", "-c", FOREIGNER, str(server.settings.home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@as_root
def test_another_user_is_stopped_by_folder_by_socket_and_by_the_peer_check(home: Path) -> None:
    with running(home) as server:
        server.settings.home.chmod(0o755)
        assert foreigner(server) == "PermissionError"
        server.settings.run_dir.chmod(0o755)
        assert foreigner(server) == "PermissionError"
        server.settings.socket.chmod(0o666)
        assert foreigner(server) == "HTTP/1.1 403 Forbidden"
        assert server.operations.calls == []
        with server.unix() as peer:
            assert peer.rpc("admin.stats.v1").status == 200


# --- TCP -------------------------------------------------------------------------------------------------------------


def test_tcp_is_off_by_default_and_loopback_only(home: Path) -> None:
    with running(home) as server:
        assert server.server.tcp_port is None
        assert not server.settings.token_file.exists()
    with running(home, tcp=True, rpc_port=0) as server:
        addresses = [acceptor._sock.getsockname() for acceptor in server.server._acceptors]
        assert [address[0] for address in addresses if isinstance(address, tuple)] == ["127.0.0.1"]


def test_a_busy_port_says_what_to_do(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=f"port {port} .* SEMANTICA_RPC_PORT"):
            with running(home, tcp=True, rpc_port=port):
                pytest.fail("it started")
    assert not (home / "run" / "rpc.sock").exists()


def test_the_port_is_free_again_at_once(home: Path) -> None:
    with running(home, tcp=True, rpc_port=0) as server:
        port = server.port
        with server.tcp() as peer:
            peer.rpc("admin.stats.v1")
    with running(home, tcp=True, rpc_port=port):
        pass


# --- token -----------------------------------------------------------------------------------------------------------


def test_the_token_is_made_once_and_is_private(home: Path) -> None:
    before = os.umask(0)
    try:
        with running(home, tcp=True, rpc_port=0) as server:
            token = server.token
            assert mode(server.settings.token_file) == 0o600
            assert len(token) >= 43
    finally:
        os.umask(before)
    with running(home, tcp=True, rpc_port=0) as server:
        assert server.token == token
    assert [path.name for path in (home / "run").iterdir()] == ["token"]
    shutil.rmtree(home)
    with running(home, tcp=True, rpc_port=0) as server:
        assert server.token != token


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("link", "symbolic link"),
        ("readable", "0600"),
        ("folder", "file of yours"),
        ("pipe", "file of yours"),
        ("empty", "no token"),
        ("short", "no token"),
    ],
)
def test_a_token_that_is_not_safe_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "token"
    good = tmp_path / "good"
    good.write_text("x" * 43)
    good.chmod(0o600)
    match name:
        case "link":
            path.symlink_to(good)
        case "readable":
            good.rename(path)
            path.chmod(0o640)
        case "folder":
            path.mkdir(0o700)
        case "pipe":
            os.mkfifo(path, 0o600)
        case "empty":
            path.touch(0o600)
        case "short":  # what is 31 characters long can be guessed sooner than a token of ours
            path.touch(0o600)
            path.write_text("x" * 31)
    with pytest.raises(StartupError, match=text) as caught:
        listeners.load_token(path)
    assert str(path) in caught.value.message


@as_root
def test_a_token_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x" * 43)
    path.chmod(0o600)
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(StartupError, match="file of yours"):
        listeners.load_token(path)
