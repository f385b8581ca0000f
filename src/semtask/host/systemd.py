"""What systemd and a service tell each other: readiness, status, signs of life, and sockets that are open already.

Without systemd nothing of it does anything. Standard library only; see sd_notify(3) and sd_listen_fds(3).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger("semtask.systemd")

_FIRST_FD = 3


class Service:
    """This process, as a service. Takes the variables out of `env`: they are meant for no other process."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        self._address = env.pop("NOTIFY_SOCKET", "")
        interval = env.pop("WATCHDOG_USEC", "")
        meant = env.pop("WATCHDOG_PID", "") in {"", str(os.getpid())}
        self.sign_every_s: float | None = int(interval) / 2_000_000 if meant and interval.isdigit() else None
        """How often a sign of life is due; None if nobody waits for one."""

    def ready(self, status: str) -> None:
        self._tell(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def stopping(self, within_s: float) -> None:
        """It may take as long as that."""
        self._tell(f"STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC={round(within_s * 1_000_000)}")

    def _tell(self, text: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(text.encode(), address)
        except OSError as error:
            log.warning("systemd cannot be told %r: %s", text, error)


def passed_sockets(env: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that were passed to this process. Takes the variables out of `env`; a second call finds nothing."""
    pid, count = env.pop("LISTEN_PID", ""), env.pop("LISTEN_FDS", "")
    env.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    return sockets
