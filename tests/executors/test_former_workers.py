"""What a new daemon finds out about the workers of one that was killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.former_attempts import FormerAttempts
from semtask.host import procfs
from semtask.model.job import ClaimFacts, ExecutionMode, Job, OnInterrupt
from semtask.model.outcome import FailureClass, Outcome
from semtask.model.state import State
from semtask.workers.former import FormerWorkers
from tests.executors.rig import alive, reap_adopted, until, with_nonce
from tests.executors.task_rig import REPOSITORY, SYNC, new_id

# Does not end at SIGTERM, which its shim sends when the daemon dies.
STUBBORN = SYNC + (
    "@app.task\ndef stubborn() -> None:\n"
    "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    open('runs', 'w').close()\n    time.sleep(300)\n"
    "@app.task\ndef with_child() -> None:\n"
    "    subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
    "    open('runs', 'w').close()\n    time.sleep(300)\n"
)


class Owner:
    def __init__(self, home: Path, *jobs: tuple[str, dict[str, Any]]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.executors.task_owner", str(home), STUBBORN, json.dumps(jobs)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.worker, self.launcher = json.loads(self.process.stdout.readline())
        self.attempts = AttemptsDir(home / "attempts")

    def die(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def die_with_all_helpers(self) -> None:
        """Nobody is left to end the worker."""
        started = self.attempts.attempt(self.worker.removesuffix(".1"), 1).started()
        assert started is not None
        assert started.shim is not None
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in (self.process.pid, self.launcher, started.shim.pid):
                os.kill(pid, number)
        self.die()

    def job(self, worker: str | None = "", **facts: str) -> Job:
        """The row that it left of a task in its worker."""
        worker = self.worker if worker == "" else worker
        claim = {"boot_id": procfs.boot_id(), "attempts_id": self.attempts.attempts_id, **facts}
        return Job(
            seq=1,
            job_id=new_id(),
            queue="default",
            job_type="task",
            execution_mode=ExecutionMode.IN_PROCESS,
            state=State.RUNNING,
            payload="{}",
            created_at=0,
            on_interrupt=OnInterrupt.REQUEUE,
            content_hash=b"",
            claim_no=1,
            claim=ClaimFacts(daemon_epoch=1, nonce=worker or "none", worker=worker, **claim),
        )


class Successor:
    def __init__(self, home: Path) -> None:
        self.attempts = AttemptsDir(home / "attempts")
        self.counters: Counter[str] = Counter()
        self.former = FormerAttempts(self.attempts, FormerWorkers(self.attempts, self._add), self._add)

    def _add(self, name: str, number: int) -> None:
        self.counters[name] += number

    async def settle(self, job: Job) -> Outcome:
        while (outcome := await self.former.judge(job)) is None:
            await asyncio.wait_for(self.former.wait_unlocked(job), 20)
        return outcome


@pytest.fixture(autouse=True)
def _no_strays() -> Iterator[None]:
    """Launchers of killed daemons come to this process; what is left of them would be a stranger to later tests."""
    yield
    deadline = time.monotonic() + 10
    while any(os.getsid(pid) != os.getsid(0) for pid in procfs.children(os.getpid())):
        assert time.monotonic() < deadline, "something of a killed daemon stays"
        reap_adopted()
        time.sleep(0.01)


def test_a_worker_that_lives_on_holds_its_jobs_and_no_others(tmp_path: Path) -> None:
    async def main() -> None:
        owner = Owner(tmp_path, ("stubborn", {}))
        began = time.monotonic()
        owner.die()
        after = Successor(tmp_path)
        jobs = [owner.job() for _ in range(30)]
        assert await after.former.judge(jobs[0]) is None
        other = await after.former.judge(owner.job(worker=None))
        assert other is not None
        assert other.failure is FailureClass.INTERRUPTED
        ends = await asyncio.gather(*map(after.settle, jobs))
        assert 1.5 < time.monotonic() - began < 15
        assert {end.failure for end in ends} == {FailureClass.INTERRUPTED}
        assert with_nonce(owner.worker) == []
        assert not after.attempts.attempt(owner.worker.removesuffix(".1"), 1).exists()
        await until(lambda: not alive(owner.launcher), "the launcher's end")

    asyncio.run(main())


def test_a_worker_without_a_shim_is_found_and_ended_once(tmp_path: Path) -> None:
    async def main() -> None:
        owner = Owner(tmp_path, ("with_child", {}))
        assert len(with_nonce(owner.worker)) == 2
        owner.die_with_all_helpers()
        after = Successor(tmp_path)
        ends = await asyncio.gather(*(after.settle(owner.job()) for _ in range(20)))
        assert {end.failure for end in ends} == {FailureClass.INTERRUPTED}
        assert with_nonce(owner.worker) == []
        assert after.counters == {"recovery.zombies_cleaned": 2}
        # And again, as a daemon would that was killed before it could store the ends.
        again = await Successor(tmp_path).former.judge(owner.job())
        assert again is not None
        assert again.failure is FailureClass.INTERRUPTED

    asyncio.run(main())


def test_a_shim_that_comes_late_finds_the_poison(tmp_path: Path) -> None:
    async def main() -> None:
        attempts = AttemptsDir(tmp_path / "attempts")
        folder = attempts.attempt(name := f"worker-{new_id()}", 1)
        folder.create()
        fd = folder.open()
        owner = Owner.__new__(Owner)
        owner.attempts, owner.worker = attempts, f"{name}.1"
        end = await Successor(tmp_path).former.judge(owner.job())
        assert end is not None
        assert end.failure is FailureClass.INTERRUPTED
        assert os.access("poison", os.F_OK, dir_fd=fd)
        os.close(fd)

    asyncio.run(main())


@pytest.mark.parametrize(("boot", "attempts", "spared"), [("another", None, True), (None, "another", False)])
def test_claims_of_another_boot_or_folder_are_interrupted(
    tmp_path: Path, boot: str | None, attempts: str | None, spared: bool
) -> None:
    async def main() -> None:
        owner = Owner(tmp_path, ("stubborn", {}))
        facts = {"boot_id": boot} if boot else {"attempts_id": attempts or ""}
        end = await asyncio.wait_for(Successor(tmp_path).former.judge(owner.job(**facts)), 20)
        assert end is not None
        assert end.failure is FailureClass.INTERRUPTED
        # In this boot it may run somewhere: it is looked for.
        assert bool(with_nonce(owner.worker)) is spared
        owner.die()
        await until(lambda: with_nonce(owner.worker) == [], "its end")
        await until(lambda: not alive(owner.launcher), "the launcher's end")

    asyncio.run(main())


@pytest.mark.parametrize("helpers", ["alive", "dead"])
def test_idle_workers_of_a_dead_daemon_leave_nothing(tmp_path: Path, helpers: str) -> None:
    async def main() -> None:
        owner = Owner(tmp_path)
        if helpers == "alive":
            owner.die()
        else:
            owner.die_with_all_helpers()
        after = Successor(tmp_path)
        kept = after.attempts.attempt("01890a5d-ac96-774b-bcce-b302099a80fe", 1)
        kept.create()
        await asyncio.wait_for(after.former.remove_abandoned(), 20)
        assert with_nonce(owner.worker) == []
        assert [name for name in os.listdir(after.attempts.path) if name.startswith("worker-")] == []
        assert kept.exists()

    asyncio.run(main())
