"""A real launcher, real shims and real processes, driven in the test's own process; no store."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.base import CommandSpec
from semtask.executors.spawner import Spawner
from semtask.executors.sub_process import SubprocessExecutor
from semtask.host import procfs
from semtask.model.job import ClaimFacts, ExecutionMode, Job, OnInterrupt, ProcessIdentity
from semtask.model.outcome import Outcome
from semtask.model.state import State

PATH = "/usr/local/bin:/usr/bin:/bin"


async def until(condition: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    """Await a condition of the outside world."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    seen = procfs.stat(pid)
    return seen is not None and seen.alive


def with_nonce(nonce: str) -> list[int]:
    """The living processes of an attempt, found without the code under test."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SEMANTICA_ATTEMPT={nonce}".encode() in environ and alive(int(pid)):
            found.append(int(pid))
    return found


def make_spec(
    argv: Sequence[str],
    *,
    job_id: str = "job",
    claim_no: int = 1,
    env: Mapping[str, str] | None = None,
    working_dir: str = "/",
    umask: int = 0o22,
    split: bool = False,
    grace_ms: int = 5000,
    nonce: str | None = None,
) -> CommandSpec:
    nonce = nonce or f"{job_id}.{claim_no}.{os.getpid()}"
    return CommandSpec(
        job_id=job_id,
        claim_no=claim_no,
        argv=tuple(argv),
        env={"PATH": PATH, **(env or {}), "SEMANTICA_ATTEMPT": nonce},
        working_dir=working_dir,
        umask=umask,
        split_stderr=split,
        grace_ms=grace_ms,
        nonce=nonce,
    )


def former(attempts: AttemptsDir, spec: CommandSpec, *, boot_id: str | None = None) -> Job:
    """The row that a former daemon left of a running command."""
    return Job(
        seq=1,
        job_id=spec.job_id,
        queue="default",
        job_type="command",
        execution_mode=ExecutionMode.SUBPROCESS,
        state=State.RUNNING,
        payload="{}",
        created_at=0,
        on_interrupt=OnInterrupt.FAIL,
        content_hash=b"",
        claim_no=spec.claim_no,
        claim=ClaimFacts(
            daemon_epoch=1,
            boot_id=boot_id or procfs.boot_id(),
            attempts_id=attempts.attempts_id,
            nonce=spec.nonce,
        ),
    )


def reap_adopted() -> None:
    """Take in the dead processes that came to this one, a child subreaper since it had a launcher."""
    for pid in procfs.children(os.getpid()):
        if not alive(pid) and os.getsid(pid) != os.getsid(0):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


class Rig:
    def __init__(self, home: Path, kill_patience_s: float) -> None:
        self.home = home
        self.attempts = AttemptsDir(home / "attempts")
        self.orphans = 0
        self.counters: Counter[str] = Counter()
        self.kill_failed: list[tuple[str, int]] = []
        self.started: dict[str, ProcessIdentity] = {}
        self.spawner = Spawner(self.attempts, self._count_orphans)
        self.executor = SubprocessExecutor(
            self.attempts,
            self.spawner,
            self._open_logs,
            lambda job_id, claim_no: self.kill_failed.append((job_id, claim_no)),
            lambda name, number: self.counters.update({name: number}),
            kill_patience_s=kill_patience_s,
        )

    async def run(self, spec: CommandSpec) -> Outcome:
        return await self.executor.run(spec, lambda who: self.started.__setitem__(spec.job_id, who))

    async def python(self, code: str, *args: str, **options: object) -> Outcome:
        return await self.run(make_spec([sys.executable, "-c", code, *args], **options))  # type: ignore[arg-type]

    def begin(self, spec: CommandSpec) -> asyncio.Task[Outcome]:
        return asyncio.create_task(self.run(spec))

    async def command_of(self, job_id: str = "job") -> int:
        await until(lambda: job_id in self.started, f"{job_id} started")
        return self.started[job_id].pid

    def shim_of(self, job_id: str = "job", claim_no: int = 1) -> int:
        started = self.attempts.attempt(job_id, claim_no).started()
        assert started is not None
        assert started.shim is not None
        return started.shim.pid

    def launcher_pid(self) -> int:
        assert self.spawner._process is not None
        return self.spawner._process.pid

    def output(self, job_id: str = "job", claim_no: int = 1, stream: str = "out") -> str:
        path = self.home / f"{job_id}.{claim_no}.{stream}"
        return path.read_text() if path.exists() else ""

    def _count_orphans(self, number: int) -> None:
        self.orphans += number

    def _open_logs(self, job_id: str, claim_no: int, split: bool) -> tuple[int, int | None]:
        def opened(stream: str) -> int:
            path = self.home / f"{job_id}.{claim_no}.{stream}"
            return os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

        return opened("out"), opened("err") if split else None


@asynccontextmanager
async def rig(home: Path, *, kill_patience_s: float = 5.0) -> AsyncIterator[Rig]:
    home.mkdir(exist_ok=True)
    made = Rig(home, kill_patience_s)
    await made.spawner.start()
    try:
        yield made
    finally:
        await made.spawner.close()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
