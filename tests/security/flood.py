"""Many hostile or slow connections to a daemon, from a process of their own: `python -m tests.security.flood`.

Arguments: the socket, how many connections, and how many of those that the daemon closed are opened again per second.
Prints "full" when all have been opened, and goes on until its stdin ends.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Callable

JOB_ID = "018f0000-0000-7000-8000-000000000001"
HEAD = b"POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def _post(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


STATS = _post(b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1"}')
# What each kind sends at once, what it goes on to send byte by byte, and whether it reads the answers.
KINDS: dict[str, tuple[bytes, bytes, bool]] = {
    "silent": (b"", b"", True),
    "half a head": (b"POST /rpc HTTP/1.1\r\nHost: loc", b"", True),
    "slow head": (HEAD + b"X-A: ", b"a", True),
    "slow body": (HEAD + b"Content-Length: 10000000\r\n\r\n", b"[", True),
    "slow large body": (HEAD + b"Content-Length: 10000000\r\n\r\n" + b"[" * 100_000, b"[", True),
    "slow chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n", b"[", True),
    "takes no answers": (STATS * 300, b"", False),
    "garbage": (os.urandom(2000), b"", True),
    "no job": (_post(b'{"jsonrpc":"2.0","id":1,"method":"dev.wait.v1","params":{"job_ids":["%s"]}}' % JOB_ID.encode()),
               b"", True),
    "deep": (_post(b"[" * 20_000), b"", True),
}  # fmt: skip
NAMES = list(KINDS)


class Flood:
    def __init__(self, path: str, wanted: int, again_per_s: float) -> None:
        self._path = path
        self._wanted = wanted
        self._again_per_s = again_per_s
        self._open: dict[int, tuple[socket.socket, str]] = {}
        self._poll = select.epoll()
        self._made = 0

    def run(self, on_full: Callable[[], None], ended: Callable[[], bool]) -> None:
        credit, then, slow = 0.0, time.monotonic(), 0.0
        while not ended():
            now = time.monotonic()
            if self._made >= self._wanted:
                credit = min(credit + (now - then) * self._again_per_s, self._again_per_s)
            then = now
            while len(self._open) < self._wanted and (self._made < self._wanted or credit >= 1):
                if not self._connect():
                    break
                credit -= self._made >= self._wanted
                if self._made == self._wanted:
                    on_full()
            if now - slow > 0.5:
                slow = now
                for number, (sock, kind) in list(self._open.items()):
                    self._send(number, sock, KINDS[kind][1])
            for number, _ in self._poll.poll(0.01):
                self._read(number)

    def _connect(self) -> bool:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            if error.errno == errno.EAGAIN:  # the backlog is full
                return False
            raise
        kind = NAMES[self._made % len(NAMES)]
        self._made += 1
        self._open[sock.fileno()] = (sock, kind)
        if KINDS[kind][2]:
            self._poll.register(sock, select.EPOLLIN | select.EPOLLHUP)
        self._send(sock.fileno(), sock, KINDS[kind][0])
        return True

    def _send(self, number: int, sock: socket.socket, data: bytes) -> None:
        try:
            if data:
                sock.send(data)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(number)

    def _read(self, number: int) -> None:
        sock, _ = self._open[number]
        try:
            if not sock.recv(1 << 16):
                self._drop(number)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(number)

    def _drop(self, number: int) -> None:
        if number in self._open:
            self._open.pop(number)[0].close()


def main() -> None:
    path, wanted, again_per_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and wanted > hard - 50:
        sys.exit(f"{wanted} connections need more file descriptors than {hard}")

    def full() -> None:
        print("full", flush=True)

    def ended() -> bool:
        return bool(select.select([0], [], [], 0)[0])

    Flood(path, wanted, again_per_s).run(full, ended)


if __name__ == "__main__":
    main()
