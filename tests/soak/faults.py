"""The faults of a soak: kill -9 of helpers and now and then of the daemon, too few descriptors, slow clients."""

from __future__ import annotations

import os
import random
import resource
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tests.harness.ground import Ground
from tests.harness.processes import Kind, by_kind, kill

HELPERS: tuple[Kind, ...] = ("launcher", "shim", "shim", "worker", "worker")
SLOW_CLIENTS = 100
SQUEEZE_S = 1.5


class Faults:
    """One each `every_s`, and the death of the daemon each `life_s`. `mark` is told each of them, by name."""

    def __init__(
        self, ground: Ground, dice: random.Random, every_s: float, life_s: float, mark: Callable[[str], None]
    ) -> None:
        self.surprises: list[str] = []
        self._ground = ground
        self._dice = dice
        self._every_s = every_s
        self._life_s = life_s
        self._mark = mark

    def run(self, seconds: float) -> None:
        """Return after so many seconds, with a daemon that runs."""
        end = time.monotonic() + seconds
        dies = time.monotonic() + self._life_s
        number = 0
        while (now := time.monotonic()) < end:
            self._pause(min(self._every_s, max(0.0, min(dies, end) - now)))
            if time.monotonic() >= end:
                return
            if time.monotonic() >= dies:
                dies = time.monotonic() + self._life_s
                self._strike_daemon()
                continue
            number += 1
            if number % 7 == 3:
                self._squeeze()
            elif number % 7 == 6:
                self._crowd()
            else:
                self._strike_helper()

    def _pause(self, seconds: float) -> None:
        """A daemon that dies meanwhile is no fault of ours."""
        process = self._ground.daemon.process
        assert process is not None
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            threading.Event().wait(min(left, 0.2))
            if process.poll() is not None:
                self.surprises.append(f"the daemon ended by itself with {process.returncode}")
                self._ground.daemon.start()
                return

    def _strike_daemon(self) -> None:
        self._mark("daemon")
        self._ground.daemon.kill()
        self._ground.daemon.start()

    def _strike_helper(self) -> None:
        kind = self._dice.choice(HELPERS)
        found = by_kind(self._ground.home)[kind]
        if found and kill(self._dice.choice(found), kind):
            self._mark(kind)

    def _squeeze(self) -> None:
        """Let the daemon have hardly more descriptors than it has."""
        pid = self._ground.daemon.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        self._mark("squeeze")
        few = len(os.listdir(f"/proc/{pid}/fd")) + 2
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, before[1]))
            self._pause(SQUEEZE_S)
            resource.prlimit(self._ground.daemon.pid, resource.RLIMIT_NOFILE, before)

    def _crowd(self) -> None:
        """Clients that begin a request and say no more, and leave together."""
        self._mark("slow clients")
        clients: list[socket.socket] = []
        folder = os.open(self._ground.home / "run", os.O_PATH | os.O_DIRECTORY)
        try:
            for _ in range(SLOW_CLIENTS):
                client = socket.socket(socket.AF_UNIX)
                clients.append(client)
                client.settimeout(2)
                client.connect(f"/proc/self/fd/{folder}/rpc.sock")
                client.sendall(b"POST /rpc HTTP/1.1\r\nHost: loc")
            self._pause(1.0)
        except OSError:
            pass  # the backlog is full, or it was the moment of a restart
        finally:
            os.close(folder)
            for client in clients:
                client.close()
