"""The sockets that the daemon listens on, and the token file: made so that nobody else can be in between."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from semtask.errors import StartupError
from semtask.host.systemd import passed_sockets

# The kernel caps it at net.core.somaxconn.
BACKLOG = 4096
_MIN_TOKEN_LENGTH = 32
_passed: set[tuple[int, int]] = set()  # socket files of systemd: it goes on listening there


def listen_unix(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0600 from its first moment, in a folder of mode 0700.

    Bound through the descriptor of the folder, so the path may have any length. A socket of ours that lies there is
    replaced: the caller holds the lock of the home, so nobody listens on it. Or it is the one that systemd has opened
    for us. Raises StartupError.
    """
    with _private_folder(path.parent) as folder:
        if (passed := _passed_unix(path)) is not None:
            return passed
        _clear_place(path, folder)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(sock.fileno(), 0o600)  # on Linux the socket file takes the mode of the descriptor
            sock.bind(f"/proc/self/fd/{folder}/{path.name}")
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise StartupError(f"cannot listen on {path}: {error.strerror}") from error
    return sock


def identity(path: Path) -> tuple[int, int]:
    """Tells a file from a later one at the same path."""
    status = os.stat(path, follow_symlinks=False)
    return status.st_dev, status.st_ino


def remove_unix(path: Path, made: tuple[int, int]) -> None:
    """Remove the socket file that was made, unless it is systemd's, or another one lies there by now."""
    if made in _passed:
        return
    with suppress(FileNotFoundError, NotADirectoryError):
        if identity(path) == made:
            path.unlink()


def _passed_unix(path: Path) -> socket.socket | None:
    """The socket that systemd has opened at `path` and passed on. Raises StartupError for any other one."""
    sockets = passed_sockets(os.environ)
    if not sockets:
        return None
    sock, *more = sockets
    place = sock.getsockname() if sock.family == socket.AF_UNIX else None
    listening = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if more or not listening or not isinstance(place, str) or not _same_file(place, path):
        for each in sockets:
            each.close()
        raise StartupError(
            f"systemd passes {len(sockets)} sockets, the first one at {place!r}; the unit must have one stream socket, "
            f"at {path}: `semtask install-service` writes it"
        )
    os.chmod(path, 0o600)
    _passed.add(identity(path))
    sock.setblocking(False)
    return sock


def _same_file(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def listen_tcp(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1; port 0 takes a free one. Raises StartupError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise StartupError(
                f"port {port} of 127.0.0.1 is taken by another program: set SEMANTICA_RPC_PORT to another port "
                "(0 takes a free one), or SEMANTICA_TCP=off"
            ) from error
        raise StartupError(f"cannot listen on port {port} of 127.0.0.1: {error.strerror}") from error
    return sock


def is_passed(made: tuple[int, int]) -> bool:
    """Whether the socket file is one that systemd has opened."""
    return made in _passed


class TokenFile:
    """The token of the TCP port and its file. Raises StartupError for a file that is not safe.

    No text of this object shows the token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.token = load_token(path)

    def restore(self) -> None:
        """Write the token again if its file is gone. Raises StartupError."""
        if not os.path.lexists(self._path):
            with _private_folder(self._path.parent) as folder, suppress(FileExistsError):
                _make_token(self._path, folder, self.token)


def load_token(path: Path) -> bytes:
    """The token of the TCP port; made if there is none yet. Raises StartupError for a file that is not safe."""
    with _private_folder(path.parent) as folder:
        try:
            return _read_token(path, folder)
        except FileNotFoundError:
            _make_token(path, folder, secrets.token_urlsafe(32).encode())
            return _read_token(path, folder)


def _make_token(path: Path, folder: int, token: bytes) -> None:
    """Written under another name and linked, so that no crash leaves half a token. Raises FileExistsError."""
    draft = f".{path.name}.{secrets.token_hex(8)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(token + b"\n")
        os.link(draft, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.unlink(draft, dir_fd=folder)


def _read_token(path: Path, folder: int) -> bytes:
    try:
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StartupError(f"cannot use the token file {path}: {_why(path, error)}; remove it") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise StartupError(f"the token file {path} must be a file of yours with mode 0600; remove it")
        token = os.read(descriptor, 4096).strip()
    finally:
        os.close(descriptor)
    if len(token) < _MIN_TOKEN_LENGTH:
        raise StartupError(f"the token file {path} holds no token; remove it and a new one is made")
    return token


def _clear_place(path: Path, folder: int) -> None:
    try:
        status = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise StartupError(f"{path} is in the way: it is no socket; remove it")
    if status.st_uid != os.geteuid():
        raise StartupError(f"{path} is in the way: it belongs to user {status.st_uid}; remove it")
    os.unlink(path.name, dir_fd=folder)


@contextmanager
def _private_folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder, which is made or closed to others (mode 0700) if need be."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise StartupError(f"cannot use the folder {path}: {_why(path, error)}") from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise StartupError(f"cannot use the folder {path}: it belongs to user {status.st_uid}")
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.fchmod(descriptor, 0o700)
        yield descriptor
    finally:
        os.close(descriptor)


def _why(path: Path, error: OSError) -> str:
    return "it is a symbolic link" if path.is_symlink() else error.strerror or str(error)
