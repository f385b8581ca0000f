"""The shim: one per command attempt and one per worker, forked by the launcher.

It runs the command, ends its whole tree, writes the record. To a shim a worker is a command that inherits two
descriptors more.

Standard library only. It never raises into the launcher's code and touches as little memory as it can: every page
that it writes to is one of its own.
"""

from __future__ import annotations

import fcntl
import os
import resource  # noqa: F401 - wait4 needs it, and a shim should find it there
import select
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

from semtask.host import linux, procfs, tree
from semtask.launch import command, folder, sandbox
from semtask.launch.control import EXIT_LOCKED, EXIT_NO_ROOM, EXIT_POISONED, NO_ROOM
from semtask.launch.pump import Pump, Pumps
from semtask.launch.stopping import Stopping

GRACE_WITHOUT_DAEMON_MS = 2000
STUCK_AFTER_S = 5.0  # processes that outlive SIGKILL for so long are reported
_MAX_PAUSE_MS = 100
_BRIEF_MS = 2  # what a command writes in this time may wait in its pipe: it may have ended by then
_BWRAP_S = 1.0  # from the end of a command to that of its bwrap
_SHORT_MS = 30  # of a command that ends sooner, the daemon learns from `started`


class Task(NamedTuple):
    """What the launcher hands to a shim. All but the first three and the mask are descriptors."""

    request: int
    umask: int
    grace_ms: int
    signal_mask: Collection[int]
    specification: int
    folder: int
    stdout: int
    stderr: int
    daemon: int  # readable, at its end, when the daemon is dead
    notices: int  # a pipe to the daemon
    signals: int  # a signalfd of SIGCHLD and SIGTERM
    null: int
    pipes: tuple[tuple[int, int], ...] = ()  # of stdout and stderr: where to read, and the log
    passed: tuple[int, ...] = ()  # what the command inherits, from descriptor 3 on


def run(task: Task) -> int:
    """Run one attempt and return the exit code of the shim. Called in a process of its own, all signals blocked."""
    try:
        lock = os.open(folder.LOCK, os.O_RDWR | os.O_CLOEXEC, dir_fd=task.folder)
    except FileNotFoundError:
        return EXIT_POISONED
    try:
        if not _take(lock):
            return EXIT_LOCKED
        # Poison is looked for before the lock's name: when a poisoned folder is emptied, the lock goes first.
        if folder.exists_at(task.folder, folder.POISON) or os.fstat(lock).st_nlink == 0:
            return EXIT_POISONED
        return _run(_Attempt(task))
    finally:
        os.close(lock)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run(attempt: _Attempt) -> int:
    try:
        attempt.run()
    except OSError as error:
        if error.errno in NO_ROOM and not attempt.command_pid:
            return EXIT_NO_ROOM
        raise
    return 0


class _Attempt:
    def __init__(self, task: Task) -> None:
        self._task = task
        self.command_pid = 0  # 0: not started
        self._command: command.Started | None = None
        self._status: int | None = None
        self._max_rss_kib = 0
        self._stopping: Stopping | None = None
        self._news: str | None = None  # who the command is
        self._others_reaped = 0
        self._swept = 0
        self._poll = select.poll()
        self._poll.register(task.signals, select.POLLIN)
        self._pumps = Pumps(Pump(*pipe) for pipe in task.pipes)

    def run(self) -> None:
        task = self._task
        started_ms = _now_ms()
        linux.become_child_subreaper()
        note = os.open(folder.STARTED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=task.folder)
        os.write(note, f"shim {mark(os.getpid())}\n".encode())
        refused = ""
        number = 0
        try:
            self._start()
        except command.RefusedError as error:
            refused, number = str(error), error.number
        self._be_nobody()
        bubble = self._command.bubble if self._command is not None else None
        log = os.dup(task.pipes[-1][1]) if bubble is not None else -1  # the pump closes its own at the end of the pipe
        if self.command_pid:
            self._announce(note)
        for fd in {note, task.specification, task.stdout, task.stderr, *task.passed}:
            os.close(fd)
        if self.command_pid:
            self._supervise()
            self._end_tree()
            self._pumps.drain()
        if bubble is not None:
            try:
                bubble.close(self._status, log)
            except sandbox.SandboxError as error:
                refused, number, self._status = str(error), error.number, None
        self._write(
            folder.Record(
                wait_status=self._status,
                stop=self._stopping.reason if self._stopping else "",
                started_ms=started_ms,
                ended_ms=_now_ms(),
                swept=self._swept,
                spawn_errno=number,
                spawn_error=refused,
                max_rss_kib=self._max_rss_kib,
                sandbox=self._command.level if self._command else "",
            )
        )
        self._pumps.close()

    def _start(self) -> None:
        task = self._task
        os.dup2(task.stdout, 1)
        os.dup2(task.stderr, 2)
        os.umask(task.umask)
        passed = (*task.passed, self._pumps.take_requests()) if task.passed else ()
        self._command = command.start(task.specification, task.signal_mask, passed)
        if passed:
            os.close(passed[-1])
        self.command_pid = self._command.pid

    def _be_nobody(self) -> None:
        """Hold nothing of the job's: neither its log nor its folder."""
        os.dup2(self._task.null, 1)
        os.dup2(self._task.null, 2)
        os.umask(0o077)
        os.chdir("/")

    def _supervise(self) -> None:
        """Return when the command has ended by itself, or was stopped and its tree is gone or its grace is over."""
        self._poll.register(self._task.daemon, select.POLLIN)
        if not self._poll.poll(_BRIEF_MS):
            self._pumps.poll(self._poll, _SHORT_MS)
        if self._news is not None and not self._ended():
            self._tell(self._news)
        while not self._is_over():
            for fd, _ in self._pumps.poll(self._poll, None if self._stopping is None else self._stopping.wait_ms()):
                if fd == self._task.daemon:
                    self._poll.unregister(fd)
                    grace = min(self._task.grace_ms, GRACE_WITHOUT_DAEMON_MS)
                    self._begin_stop(folder.Stop(folder.DAEMON_DIED, grace))
                elif fd == self._task.signals:
                    if signal.SIGTERM in linux.pending_signals(fd):
                        self._begin_stop(self._asked())
                else:
                    self._end_stop()
        self._end_stop()

    def _is_over(self) -> bool:
        left = self._reap()
        if self._stopping is None:
            return self._status is not None
        return not left or self._stopping.is_over()

    def _asked(self) -> folder.Stop:
        """What the daemon wants. Without a readable note (a full disk) the job's own grace holds."""
        data = folder.read_at(self._task.folder, folder.STOP)
        return (folder.decode_stop(data) if data else None) or folder.Stop("signal", self._task.grace_ms)

    def _begin_stop(self, stop: folder.Stop) -> None:
        if self._stopping is not None:
            self._stopping.shorten(stop.grace_ms)
        elif not self._ended():
            assert self._command is not None, "only what runs is stopped"
            self._stopping = Stopping(self._command, stop.reason, stop.grace_ms)
            if self._stopping.first_process >= 0:
                self._poll.register(self._stopping.first_process, select.POLLIN)

    def _end_stop(self) -> None:
        """Nothing is left in the pid namespace, or the grace is over: take in how the command ended, if it has."""
        if self._stopping is None or self._stopping.first_process < 0:
            return
        self._poll.unregister(self._stopping.first_process)
        if self._stopping.release():
            give_up = time.monotonic() + _BWRAP_S
            while not self._ended() and time.monotonic() < give_up:
                self._pumps.poll(self._poll, _MAX_PAUSE_MS)
                linux.pending_signals(self._task.signals)

    def _end_tree(self) -> None:
        """Kill whatever is left, until the kernel says that no child is left, however long that takes."""
        before = self._others_reaped
        wakeup = select.poll()
        wakeup.register(self._task.signals, select.POLLIN)
        pause_ms = 1
        alarm: float | None = time.monotonic() + STUCK_AFTER_S
        while self._reap():
            if alarm is not None and time.monotonic() > alarm:
                alarm = None
                self._tell("stuck")
            with suppress(OSError):  # no descriptor to look with: again after the pause
                tree.kill_round()
            self._pumps.poll(wakeup, pause_ms)
            linux.pending_signals(self._task.signals)
            pause_ms = min(2 * pause_ms, _MAX_PAUSE_MS)
        self._swept = self._others_reaped - before

    def _ended(self) -> bool:
        self._reap()
        return self._status is not None

    def _reap(self) -> bool:
        """Take in what has ended; whether any child is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.command_pid:
                self._status = status
                self._max_rss_kib = usage.ru_maxrss
            else:
                self._others_reaped += 1

    def _announce(self, note: int) -> None:
        """Write down who the command is. It runs already: what cannot be said now must not end it."""
        try:
            self._news = f"command {mark(self.command_pid)}"
            os.write(note, f"{self._news}\n".encode())
        except OSError:  # a full disk
            return

    def _tell(self, text: str) -> None:
        try:
            os.write(self._task.notices, f"{self._task.request} {text}\n".encode())
        except OSError:  # a daemon that is dead, or too busy to read
            return

    def _write(self, record: folder.Record) -> None:
        data = folder.encode_record(record)
        while True:
            try:
                folder.replace_at(self._task.folder, folder.RECORD, data)
                return
            except OSError as error:
                if error.errno not in NO_ROOM or self._daemon_is_dead():
                    raise
                time.sleep(0.1)  # the disk is full: the daemon is making room, and the truth must not be lost

    def _daemon_is_dead(self) -> bool:
        poll = select.poll()
        poll.register(self._task.daemon, select.POLLIN)
        return bool(poll.poll(0))


def mark(pid: int) -> procfs.Mark | None:
    """The identity of this process or of a child that was not reaped."""
    pidfd = os.pidfd_open(pid)
    try:
        return procfs.mark(pid, pidfd)
    finally:
        os.close(pidfd)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
