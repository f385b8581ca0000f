"""Where the daemon is, and connecting to it. Standard library only."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from semtask import errors
from semtask.config.environment import ENV_TOKEN
from semtask.config.settings import Settings


class NotRunning(errors.DaemonUnavailable):
    """No semtask daemon answers. Start one with `semtask up`."""


@dataclass(frozen=True)
class UnixAddress:
    """The socket in `run_dir`, reached through the folder's descriptor, so that no path is too long.

    Its user may do everything there, or with `token`, or the one in `token_file`, what that one allows.
    """

    run_dir: Path
    token_file: Path | None = None
    token: str | None = field(default=None, repr=False)
    host = "localhost"
    remedy = "start one with `semtask up`"

    def __str__(self) -> str:
        return str(self.run_dir / "rpc.sock")

    def authorization(self) -> str | None:
        if self.token is not None:
            return _bearer(self.token, ENV_TOKEN)
        return None if self.token_file is None else _bearer_in(self.token_file)

    def open(self, timeout: float) -> socket.socket:
        folder = os.open(self.run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                # A non-blocking connect fails immediately where the daemon's backlog is full; this one waits for room.
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
                )
                connection.connect(f"/proc/self/fd/{folder}/rpc.sock")
                _require_own(connection, self)
            except BaseException:
                connection.close()
                raise
            return connection
        finally:
            os.close(folder)


@dataclass(frozen=True)
class TcpAddress:
    """A port on the loopback. The bearer token is `token`; without one it is read from `token_file`, where there is one
    or it `must` be there.
    """

    name: str
    port: int
    token_file: Path
    must: bool = False
    token: str | None = field(default=None, repr=False)
    remedy = "start one that listens there (SEMANTICA_TCP=on), or unset SEMANTICA_RPC_URL"

    def __str__(self) -> str:
        return f"http://{self.host}"

    @property
    def host(self) -> str:
        return f"{self.name}:{self.port}"

    def authorization(self) -> str | None:
        if self.token is not None:
            return _bearer(self.token, ENV_TOKEN)
        if not self.must and not self.token_file.exists():
            return None  # a daemon with tcp_auth=off has none; any other one says that it wants it
        return _bearer_in(self.token_file)

    def open(self, timeout: float) -> socket.socket:
        connection = socket.create_connection((self.name, self.port), timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


Address = UnixAddress | TcpAddress


def address_of(settings: Settings, url: str | None = None, env: Mapping[str, str] | None = None) -> Address:
    """Where the daemon is: `url`, else SEMANTICA_RPC_URL, else the unix socket of the home. Raises ConfigError.

    An empty `url` is the unix socket, whatever the environment has. The token in SEMANTICA_TOKEN, else in the file
    SEMANTICA_TOKEN_FILE, is used at either, in place of the user's own rights.
    """
    env = os.environ if env is None else env
    token_file = Path(env["SEMANTICA_TOKEN_FILE"]) if env.get("SEMANTICA_TOKEN_FILE") else None
    token = env.get(ENV_TOKEN) or None
    name = "SEMANTICA_RPC_URL" if url is None else "the address of the daemon"
    url = env.get("SEMANTICA_RPC_URL") if url is None else url
    if not url:
        return UnixAddress(settings.run_dir, token_file, token)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "http" or parts.hostname not in {"127.0.0.1", "localhost"} or port is None:
        raise errors.ConfigError(f"{name} must be like http://127.0.0.1:9527, not {url!r}")
    must = token_file is not None
    return TcpAddress(parts.hostname, port, token_file or settings.token_file, must=must, token=token)


def _bearer_in(token_file: Path) -> str:
    try:
        text = token_file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.Unauthorized(f"cannot read the token in {token_file}: {error}") from error
    return _bearer(text, token_file)


def _bearer(text: str, place: object) -> str:
    token = text.strip()
    if not token or not token.isprintable() or not token.isascii():
        raise errors.Unauthorized(f"{place} holds no token; it must be one line of text")
    return f"Bearer {token}"


def connect(address: Address, timeout: float) -> socket.socket:
    """A connected socket. Raises NotRunning if nobody listens, else DaemonUnavailable or Unauthorized."""
    try:
        return address.open(timeout)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise NotRunning(f"no daemon answers at {address}; {address.remedy}") from error
    except (BlockingIOError, TimeoutError) as error:
        raise errors.DaemonUnavailable(
            f"the daemon at {address} accepts no connection within {timeout:g} s; is it stopped or overloaded?"
        ) from error
    except PermissionError as error:
        raise errors.Unauthorized(
            f"cannot connect to {address}: {error.strerror}; if it is another user's, choose a home of your own with "
            "SEMANTICA_HOME"
        ) from error
    except OSError as error:
        raise errors.DaemonUnavailable(f"cannot connect to {address}: {error.strerror or error}") from error


def peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process that listens at the other end of a unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return pid, uid


def _require_own(connection: socket.socket, address: UnixAddress) -> None:
    uid = peer(connection)[1]
    if uid != os.geteuid():
        raise errors.Unauthorized(f"the daemon at {address} belongs to user id {uid}, not to you ({os.geteuid()})")
