"""A scripted HTTP server on a unix socket: what a real daemon cannot be made to do on demand."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from semtask import __version__

# Takes the connection and the decoded request; returns False to close the connection.
Reply = Callable[[socket.socket, dict[str, Any]], bool]


class Fake:
    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.requests: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.connections = 0
        self.script: list[Reply] = []
        run_dir.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(run_dir, os.O_PATH)
        self._listener.bind(f"/proc/self/fd/{folder}/rpc.sock")
        os.close(folder)
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, suppress(ConnectionError):
                connection.settimeout(10)
                while self._serve_one(connection):
                    pass

    def _serve_one(self, connection: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        while len(body) < length:
            body += connection.recv(65536)
        self.heads.append(head.decode())
        self.requests.append(json.loads(body))
        reply = self.script.pop(0) if self.script else answer({})
        return reply(connection, self.requests[-1])


def answer(result: Any, *, status: int = 200, version: str = __version__, head: str = "", keep: bool = True) -> Reply:
    return raw(
        json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}), status=status, version=version, head=head, keep=keep
    )


def failure(error: dict[str, Any], *, status: int = 200, head: str = "") -> Reply:
    return raw(json.dumps({"jsonrpc": "2.0", "id": None, "error": error}), status=status, head=head)


def raw(body: str, *, status: int = 200, version: str = __version__, head: str = "", keep: bool = True) -> Reply:
    def reply(connection: socket.socket, request: dict[str, Any]) -> bool:
        data = body.encode()
        connection.sendall(
            f"HTTP/1.1 {status} X\r\nsemtask-version: {version}\r\nContent-Length: {len(data)}\r\n{head}\r\n".encode()
            + data
        )
        return keep

    return reply


def hang_up(connection: socket.socket, request: dict[str, Any]) -> bool:
    """Read the request and close without an answer."""
    return False


@contextmanager
def serving(run_dir: Path) -> Iterator[Fake]:
    fake = Fake(run_dir)
    try:
        yield fake
    finally:
        fake.close()
