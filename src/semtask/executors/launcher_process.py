"""One run of the launcher program: start it, talk to it, notice its death."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable

from semtask.config.environment import ENV_JOB_HOME
from semtask.launch import control

Answer = asyncio.Future[tuple[int, int | None]]

_SOURCE_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from semtask.launch.launcher import main; main(sys.argv[2:])"


def _environment() -> dict[str, str]:
    """Nothing of the daemon's but what the interpreter may need to start.

    LD_BIND_NOW: symbols are resolved once, here, and not in pages of its own by every shim.
    """
    needed = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {**needed, "LD_BIND_NOW": "1"}


class LauncherProcess:
    """One run of the launcher program."""

    def __init__(
        self,
        daemon_fd: int,
        notices_fd: int,
        scratch: str,
        on_orphans: Callable[[int], None],
        on_death: Callable[[], None],
        *,
        home: str,
    ) -> None:
        self._on_orphans = on_orphans
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.dead = asyncio.Event()
        self._answers: dict[int, Answer] = {}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Not read by the launcher: a command whose environment was cleared finds it in its shim, from which it comes. A
        # sandboxed one may read no other environment, but command lines.
        mark = f"{ENV_JOB_HOME}={home}"
        try:
            passed = (theirs.fileno(), daemon_fd, notices_fd)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, _SOURCE_FOLDER, scratch, *map(str, passed), mark],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                cwd="/",
                pass_fds=passed,
                start_new_session=True,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._socket.close()
            self._process.kill()
            self._process.wait()
            raise
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._receive)
        self._loop.add_reader(self._pidfd, self._died)

    @property
    def exit_status(self) -> int | None:
        return self._process.returncode

    def send(self, kind: bytes, request: int, first: int, second: int, fds: Iterable[int] = ()) -> Answer:
        """Send a message. The answer is its value, and the descriptor that came with it, if one did.

        ConnectionError, raised: it is dead, and the message reached nobody. ConnectionError, in the answer: it died.
        """
        if self.dead.is_set():
            raise ConnectionResetError("the launcher has ended")
        control.send(self._socket, control.HEADER.pack(kind, request, first, second), fds)
        answer: Answer = self._loop.create_future()
        self._answers[request] = answer
        answer.add_done_callback(lambda _: self._answers.pop(request))
        return answer

    def leave(self) -> None:
        """Ask it to spawn nothing more and to end after its last shim."""
        if not self.dead.is_set():
            self._socket.shutdown(socket.SHUT_WR)
            signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)  # somebody may have stopped it

    def kill(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _receive(self) -> None:
        while True:
            try:
                data, fds, _ = control.receive(self._socket)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._loop.remove_reader(self._socket)
                return
            kind, request, value, _ = control.HEADER.unpack(data)
            self._take(kind, request, value, fds)

    def _take(self, kind: bytes, request: int, value: int, fds: list[int]) -> None:
        if kind == control.READY:
            if not self.ready.done():  # nobody waits for it after its time
                self.ready.set_result(None)
            return
        if kind == control.ORPHANS:
            self._on_orphans(value)
            return
        answer = self._answers.get(request)
        if answer is None or answer.done():
            for fd in fds:
                os.close(fd)
        elif kind == control.REFUSED:
            answer.set_exception(OSError(value, os.strerror(value)))
        else:
            answer.set_result((value, fds[0] if fds else None))

    def _died(self) -> None:
        self._process.wait()  # it is a zombie: this reaps it without waiting
        self._receive()  # what it answered before it died counts
        self._loop.remove_reader(self._socket)
        self._loop.remove_reader(self._pidfd)
        self._socket.close()
        os.close(self._pidfd)
        self.dead.set()
        self._on_death()
        for answer in list(self._answers.values()):
            if not answer.done():
                answer.set_exception(ConnectionResetError("the launcher died"))
        if not self.ready.done():
            self.ready.set_exception(ConnectionResetError("the launcher died"))
