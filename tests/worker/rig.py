"""A real worker process under a daemon's side made of a socketpair, an eventfd and frames."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from semtask.host import procfs
from semtask.protocol.frames import (
    PROTOCOL,
    Call,
    Ended,
    Failed,
    Frames,
    Hello,
    Recalled,
    Run,
    Setup,
    Stop,
    ToDaemon,
    ToWorker,
    encode,
    to_daemon,
)

T = TypeVar("T")
WAIT_S = 20.0

APP = """
import asyncio, contextlib, os, signal, subprocess, sys, threading, time
from semtask.tasks.control import *
from semtask.tasks.context import current_job
from semtask.tasks.registry import Registry, TaskDefinition

class App:
    def __init__(self):
        self.registry = Registry()
    def task(self, function):
        name, is_async = f"{__name__}:{function.__name__}", asyncio.iscoroutinefunction(function)
        self.registry.add(TaskDefinition(name, function, is_async))
        return function

app = App()
"""

# The parent of the worker, as the shim: a subreaper that reaps. It ends when the worker has ended, with its status.
SHIM = """
import os, subprocess, sys
from semtask.host import linux
linux.become_child_subreaper()
worker = subprocess.Popen([sys.executable, "-m", "semtask.worker"], pass_fds=(3, 4))
os.close(3), os.close(4)
print(worker.pid, flush=True)
while True:
    pid, status = os.wait()
    if pid == worker.pid:
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
"""


def job_id(number: int) -> str:
    return f"01890a5d-ac96-774b-bcce-{number:012x}"


class Rig:
    """`process` is the worker, or the shim above it."""

    def __init__(self, folder: Path, *, shim: bool) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.artifacts = folder / "artifacts"
        self.cwd = folder / "app"
        self.own_log = folder / "worker.log"
        self.mark = folder / "mark"
        self.mark.write_bytes(bytes(16))
        self.daemon, worker_end = socket.socketpair()
        self.tokens = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
        self._frames = Frames()
        self._received: list[ToDaemon] = []
        self._sent = 0
        with worker_end, self.own_log.open("ab") as log:
            self.process = _start(worker_end.fileno(), self.tokens, self.cwd, log.fileno(), shim)
        self.pid = int(self.process.stdout.readline()) if self.process.stdout else self.process.pid

    # --- what the daemon says ---------------------------------------------------------------------------------------

    def setup(self, app: str = "jobs:app", **options: Any) -> None:
        values: dict[str, Any] = {
            "protocol": PROTOCOL,
            "app": app,
            "worker": "w1",
            "shim_pid": self.process.pid if self.process.stdout else 0,
            "logs_dir": str(self.logs),
            "artifacts_dir": str(self.artifacts),
            "mark_path": str(self.mark),
            "log_path": str(self.own_log),
            "inline_result_bytes": 1000,
            "max_result_bytes": 100_000,
            "max_artifact_bytes": 1 << 30,
            "max_job_artifact_bytes": 4 << 30,
            "max_job_artifacts": 1000,
            "max_jobs": 0,
            "max_memory_bytes": 0,
        }
        self.send(Setup(**(values | options)))

    def send(self, message: ToWorker) -> None:
        self.daemon.sendall(encode(message))

    def call(self, task: str, /, number: int | None = None, **arguments: Any) -> Call:
        self._sent += 1
        return Call(
            job_id=job_id(self._sent if number is None else number),
            claim_no=1,
            task=task if ":" in task else f"jobs:{task}",
            payload=msgspec.json.encode(arguments).decode(),
            attempt=1,
            max_attempts=1,
        )

    def give(self, *calls: Call, tokens: int | None = None) -> None:
        """Hand over jobs, each with a token."""
        os.eventfd_write(self.tokens, len(calls) if tokens is None else tokens)
        self.send(Run(calls=list(calls)))

    def run(self, task: str, /, **arguments: Any) -> Ended:
        """Run a job to its end."""
        call = self.call(task, **arguments)
        self.give(call)
        return self.ended(call)

    def stop(self, call: Call, reason: str = "timeout") -> None:
        self.send(Stop(job_id=call.job_id, claim_no=call.claim_no, reason=reason, grace_ms=5000))
        os.kill(self.pid, signal.SIGUSR1)

    def recall(self, *calls: Call) -> int:
        """Take back as many of these, the last ones sent, as have not begun."""
        taken = 0
        for _ in calls:
            try:
                os.eventfd_read(self.tokens)
            except BlockingIOError:
                break
            taken += 1
        if taken:
            self.send(Recalled(jobs=[(call.job_id, call.claim_no) for call in calls[-taken:]]))
        return taken

    # --- what the worker says ---------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        return self.expect(Hello)

    def failed(self) -> Failed:
        return self.expect(Failed)

    def ended(self, call: Call) -> Ended:
        return self._await(lambda m: isinstance(m, Ended) and m.job_id == call.job_id, f"the end of {call}")  # type: ignore[return-value]

    def expect(self, kind: type[T]) -> T:
        return self._await(lambda message: isinstance(message, kind), kind.__name__)  # type: ignore[return-value]

    def _await(self, wanted: Any, what: str) -> ToDaemon:
        deadline = time.monotonic() + WAIT_S
        while True:
            for message in self._received:
                if wanted(message):
                    self._received.remove(message)
                    return message
            assert self._read(deadline), f"no {what} but {self._received}; the worker's log: {self.own_log.read_text()}"

    def _read(self, deadline: float) -> bool:
        """False at the end of the socket."""
        ready, _, _ = select.select([self.daemon], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no frame in time; got {self._received}; the worker's log: {self.own_log.read_text()}"
        try:
            data = self.daemon.recv(1 << 20)
        except ConnectionResetError:
            return False
        self._frames.feed(data)
        self._received += [to_daemon(body) for body in self._frames.bodies()]
        return bool(data)

    def rest(self) -> list[ToDaemon]:
        """Everything that comes until the worker's end of the socket is closed."""
        deadline = time.monotonic() + WAIT_S
        while self._read(deadline):
            pass
        return self._received

    def waits_for_frames(self) -> None:
        """Until the worker has read everything, and has nothing to do but to wait."""
        until(lambda: fcntl.ioctl(self.daemon, termios.TIOCOUTQ, b"    ") == bytes(4), "it has read everything")
        until(lambda: (seen := procfs.stat(self.pid)) is not None and seen.state == "S", "it waits")

    def hang_up(self) -> int:
        """End the socket; the exit code of the worker."""
        self.daemon.close()
        return self.process.wait(WAIT_S)

    # --- what there is to look at -----------------------------------------------------------------------------------

    def log_path(self, call: Call | Ended) -> Path:
        return self.logs / call.job_id[-2:] / f"{call.job_id}.{call.claim_no}.log"

    def log(self, call: Call | Ended) -> list[str]:
        """The lines of a job's log, without the times."""
        path = self.log_path(call)
        return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []

    def marked(self) -> int:
        return int.from_bytes(self.mark.read_bytes()[:8], "little")

    def path(self, name: str) -> Path:
        return self.folder / name

    def close(self) -> None:
        self.daemon.close()
        if self.process.poll() is None:
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                for pid in {*procfs.children(self.pid), self.pid, *procfs.children(self.process.pid)}:
                    if alive(pid):
                        os.kill(pid, signal.SIGKILL)
                self.process.kill()
                self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        os.close(self.tokens)


def _start(socket_fd: int, tokens: int, cwd: Path, log: int, shim: bool) -> subprocess.Popen[bytes]:
    # Both are moved to their places by a shell: pass_fds keeps numbers, and these may be anything here.
    program = f"{sys.executable} -c '{SHIM}'" if shim else f"exec {sys.executable} -m semtask.worker"
    return subprocess.Popen(
        ["bash", "-c", f"exec 3<&{socket_fd}- 4<&{tokens}-; {'exec ' if shim else ''}{program}"],
        pass_fds=(socket_fd, tokens),
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if shim else log,
        stderr=log,
    )


@contextmanager
def worker(folder: Path, tasks: str = "", *, shim: bool = False, **options: Any) -> Iterator[Rig]:
    """A worker that has imported an app with these tasks (each `@app.task`), as module `jobs`."""
    with unprepared(folder, {"jobs.py": APP + textwrap.dedent(tasks)}, shim=shim) as rig:
        rig.setup(**options)
        rig.hello()
        yield rig


@contextmanager
def unprepared(folder: Path, files: dict[str, str], *, shim: bool = False) -> Iterator[Rig]:
    """A worker that was told nothing yet."""
    (folder / "app").mkdir()
    for name, text in files.items():
        (folder / "app" / name).write_text(text)
    rig = Rig(folder, shim=shim)
    try:
        yield rig
    finally:
        rig.close()


def until(condition: Any, what: str, timeout: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.002)


def alive(pid: int) -> bool:
    seen = procfs.stat(pid)
    return seen is not None and seen.alive
