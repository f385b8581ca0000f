"""The launcher: a small single-threaded process that forks one shim per attempt.

The daemon executes it once, with `python -I -S`, so it and all it imports use the standard library alone. A shim is a
fork of it and needs no interpreter start. All signals are blocked and all dispositions at default, here and in every
shim: so a command needs nothing but its signal mask, and nothing but SIGKILL and SIGSTOP can disturb the supervision.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from semtask.host import linux, procfs, tree
from semtask.launch import control, folder, shim

_MAX_PAUSE_MS = 100
_REHEARSALS = 10  # from the ninth call on the interpreter runs specialised code


def main(arguments: Sequence[str]) -> None:
    """Serve the daemon until it closes the control socket or dies, then until the last shim has left.

    `arguments` are those that LauncherProcess gives: a folder, the descriptors of the control socket, of the daemon and
    of the notices, and what is there for others to read. The folder does not exist yet; it is made, used before READY,
    and removed.
    """
    scratch = arguments[0]
    control_fd, daemon_fd, notices_fd = map(int, arguments[1:4])
    signal_mask = _own_signals()
    for fd in (control_fd, daemon_fd, notices_fd):
        os.set_inheritable(fd, False)
    linux.become_child_subreaper()
    launcher = _Launcher(control_fd, daemon_fd, notices_fd, tuple(signal_mask))
    try:
        for _ in range(_REHEARSALS):
            launcher.rehearse(scratch)
    except OSError as error:
        print(f"semtask launcher: no rehearsal, commands start slower: {error}", file=sys.stderr)  # noqa: T201
    gc.collect()
    gc.disable()
    gc.freeze()
    launcher.serve()


def _own_signals() -> set[int]:
    """Block every signal and set every disposition to default; the mask that the daemon was started with."""
    inherited = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())}
    for number in signal.valid_signals():
        if signal.getsignal(number) not in {signal.SIG_DFL, None} and number not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
    return inherited


class _Launcher:
    def __init__(self, control_fd: int, daemon_fd: int, notices_fd: int, signal_mask: tuple[int, ...]) -> None:
        self._control: socket.socket | None = socket.socket(fileno=control_fd)
        self._daemon = daemon_fd
        self._notices = notices_fd
        self._signal_mask = signal_mask
        self._signals = linux.signalfd((signal.SIGCHLD, signal.SIGTERM))
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._shims: set[int] = set()
        self._lost: dict[int, int] = {}  # pid -> wait status of shims that may have left orphans
        self._settling: list[tuple[int, int]] = []  # requests that wait until no orphan is left
        self._orphans = False
        self._poll = select.poll()
        for fd in (control_fd, daemon_fd, self._signals):
            self._poll.register(fd, select.POLLIN)

    def rehearse(self, scratch: str) -> None:
        """Run a whole attempt in this process.

        It fills the caches of the interpreter and lets it specialise its code. Otherwise each shim would do that
        again, in pages of its own: a third of the time and of the memory that a shim takes.
        """
        attempt = folder.AttemptFolder(scratch, scratch)
        attempt.create()
        source, stdout = os.pipe2(os.O_CLOEXEC)
        fds = [os.memfd_create("rehearsal"), attempt.open(), stdout, source, os.dup(self._null)]
        os.write(fds[0], control.encode_specification("/", ["/bin/sh", "-c", "echo"], {}))
        shim.run(self._task(0, 0o77, 0, fds, notices=self._null, null=2))
        os.close(fds[1])
        os.dup2(self._null, 1)
        attempt.remove()

    def serve(self) -> None:
        self._tell(control.READY)
        pause_ms = 1
        while self._control or self._shims or self._orphans:
            events = self._poll.poll(pause_ms if self._orphans else None)
            for fd, _ in events:
                if fd == self._signals:
                    linux.pending_signals(fd)
                elif fd == self._daemon:
                    self._poll.unregister(fd)
                    self._leave()
                elif self._control:
                    self._receive(self._control)
            self._reap()
            if self._orphans:
                self._end_orphans()
            pause_ms = min(2 * pause_ms, _MAX_PAUSE_MS) if self._orphans else 1
            if self._settling and not self._orphans:
                self._answer_settling()

    def _leave(self) -> None:
        if self._control:
            self._poll.unregister(self._control.fileno())
            self._control.close()
            self._control = None

    def _receive(self, channel: socket.socket) -> None:
        data, fds, truncated = control.receive(channel)
        if not data:
            self._leave()
            return
        kind, request, first, second = control.HEADER.unpack(data)
        if kind == control.SETTLE:
            self._orphans = True  # look, even if nothing was noticed
            self._settling.append((request, first))
        elif truncated:
            _close(fds)
            self._tell(control.REFUSED, request, errno.EMFILE)
        else:
            passed = fds[5:] if kind == control.WORKER else ()
            own = fds[:5] if passed else fds
            task = self._task(request, first, second, own, notices=self._notices, null=self._null)
            self._spawn(channel.fileno(), task._replace(passed=tuple(passed)), fds)

    def _spawn(self, channel: int, task: shim.Task, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(control.REFUSED, task.request, error.errno or 0)
            _close(fds)
            return
        if pid == 0:
            status = control.EXIT_FAILED
            try:
                os.close(channel)
                status = shim.run(task)
            except BaseException as error:  # noqa: BLE001 - whatever it is, a shim must not go on as a launcher
                os.write(task.notices, f"{task.request} fault {error!r:.900}\n".encode("utf-8", "replace"))
            finally:
                os._exit(status)
        self._shims.add(pid)
        _close(fds)
        try:
            pidfds = [os.pidfd_open(pid)]
        except OSError:  # no descriptor left: the daemon finds the shim by its folder
            pidfds = []
        self._tell(control.SPAWNED, task.request, pid, fds=pidfds)
        _close(pidfds)

    def _task(self, request: int, umask: int, grace_ms: int, fds: list[int], *, notices: int, null: int) -> shim.Task:
        return shim.Task(
            request=request,
            umask=umask,
            grace_ms=grace_ms,
            signal_mask=self._signal_mask,
            specification=fds[0],
            folder=fds[1],
            stdout=fds[2],
            stderr=fds[5] if len(fds) > 5 else fds[2],
            pipes=tuple(zip(fds[3::3], fds[4::3], strict=True)),
            daemon=self._daemon,
            notices=notices,
            signals=self._signals,
            null=null,
        )

    def _reap(self) -> None:
        orphans = 0
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid not in self._shims:
                orphans += 1
                continue
            self._shims.remove(pid)
            if status:
                self._lost[pid] = status
                self._orphans = True
        if orphans:
            self._tell(control.ORPHANS, first=orphans)

    def _end_orphans(self) -> None:
        """A child that is no shim was left by a shim that died."""
        with suppress(OSError):  # no descriptor to look with: again after the pause
            if all(map(self._is_shim, procfs.children(os.getpid()))):
                self._orphans = False
            else:
                tree.kill_round(self._is_shim)

    def _is_shim(self, pid: int) -> bool:
        return pid in self._shims

    def _answer_settling(self) -> None:
        for request, pid in self._settling:
            self._tell(control.SETTLED, request, self._lost.pop(pid, -1))
        self._settling.clear()

    def _tell(self, kind: bytes, request: int = 0, first: int = 0, fds: Sequence[int] = ()) -> None:
        if self._control is None:
            return
        try:
            control.send(self._control, control.HEADER.pack(kind, request, first, 0), fds)
        except (BrokenPipeError, ConnectionResetError):
            self._leave()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
