"""The daemon is killed with -9; what a later one finds."""

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
from semtask.executors.base import CommandSpec
from semtask.executors.former_attempts import FormerAttempts
from semtask.executors.spawner import SpawnRequest
from semtask.host import procfs
from semtask.launch import folder as folders
from semtask.launch import shim
from semtask.launch.control import EXIT_POISONED, sealed
from semtask.model.outcome import FailureClass, Outcome
from semtask.model.state import EndCause
from semtask.workers.former import FormerWorkers
from tests.executors.rig import alive, former, kill, make_spec, reap_adopted, rig, until, with_nonce
from tests.executors.test_stopping import MEMBERS, TREE, tree_pids

REPOSITORY = Path(__file__).parents[2]


class Owner:
    """A daemon to be killed."""

    def __init__(self, home: Path, *specs: CommandSpec) -> None:
        fields = ("argv", "job_id", "grace_ms", "nonce")
        commands: list[dict[str, Any]] = [{name: getattr(spec, name) for name in fields} for spec in specs]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.executors.owner", str(home), json.dumps(commands)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.launcher = int(self._line("launcher")[1])

    def ended(self) -> list[str]:
        return self._line("ended")

    def die(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _line(self, word: str) -> list[str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        assert line[0] == word
        return line


class Successor:
    """The daemon that comes after it."""

    def __init__(self, home: Path) -> None:
        self.attempts = AttemptsDir(home / "attempts")
        self.counters: Counter[str] = Counter()
        self.former = FormerAttempts(self.attempts, FormerWorkers(self.attempts, self._add), self._add)

    def _add(self, name: str, number: int) -> None:
        self.counters[name] += number

    async def judge(self, spec: CommandSpec, **options: Any) -> Outcome | None:
        return await self.former.judge(former(self.attempts, spec, **options))

    async def settle(self, spec: CommandSpec) -> Outcome:
        outcome = await self.judge(spec)
        while outcome is None:
            await asyncio.wait_for(self.former.wait_unlocked(former(self.attempts, spec)), 20)
            outcome = await self.judge(spec)
        return outcome

    def record(self, spec: CommandSpec) -> folders.Record | None:
        return self.attempts.attempt(spec.job_id, spec.claim_no).record()


@pytest.fixture(autouse=True)
def _no_strays() -> Iterator[None]:
    reap_adopted()
    yield
    reap_adopted()


def test_the_tree_is_gone_soon_after_the_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        spec = make_spec([sys.executable, "-c", TREE, str(tmp_path)], grace_ms=60_000)
        owner = Owner(tmp_path / "home", spec)
        pids = await tree_pids(tmp_path)
        began = time.monotonic()
        owner.die()
        after = Successor(tmp_path / "home")
        # The command ignores SIGTERM, so its shim holds the lock for the whole grace: 2 s at most.
        assert await after.judge(spec) is None
        ended = await after.settle(spec)
        assert 1.5 < time.monotonic() - began < 15
        assert {name: alive(pid) for name, pid in pids.items()} == dict.fromkeys(MEMBERS, False)
        assert (ended.end_cause, ended.failure) == (EndCause.INTERRUPTED, FailureClass.INTERRUPTED)
        record = after.record(spec)
        assert record is not None
        assert record.stop == folders.DAEMON_DIED
        await until(lambda: not alive(owner.launcher), "the launcher's end")

    asyncio.run(main())


def test_what_was_in_the_pipe_of_a_command_when_the_daemon_died_is_in_its_log(tmp_path: Path) -> None:
    async def main() -> None:
        script = f"echo begin; until test -e {tmp_path}/go; do sleep 0.02; done; seq 5000; touch {tmp_path}/said"
        spec = make_spec(["sh", "-c", f"{script}; exec sleep 60"])
        home = tmp_path / "home"
        owner = Owner(home, spec)
        log = home / "job.1.out"
        await until(lambda: log.exists() and log.read_text() == "begin\n", "the first line")
        started = AttemptsDir(home / "attempts").attempt("job", 1).started()
        assert started is not None
        assert started.shim is not None
        os.kill(started.shim.pid, signal.SIGSTOP)
        (tmp_path / "go").touch()
        await until((tmp_path / "said").exists, "the rest is written")
        owner.die()
        os.kill(started.shim.pid, signal.SIGCONT)
        assert (await Successor(home).settle(spec)).end_cause is EndCause.INTERRUPTED
        assert log.read_text() == "begin\n" + "".join(f"{i}\n" for i in range(1, 5001))

    asyncio.run(main())


def test_a_command_that_ended_before_is_not_interrupted(tmp_path: Path) -> None:
    async def main() -> None:
        spec = make_spec(["sh", "-c", "exit 4"])
        owner = Owner(tmp_path, spec)
        assert owner.ended()[1:] == ["job", "exit_code"]
        owner.die()
        ended = await Successor(tmp_path).judge(spec)
        assert ended is not None
        assert (ended.end_cause, ended.exit_code) == (EndCause.EXIT_CODE, 4)

    asyncio.run(main())


def test_a_torn_record_counts_as_none(tmp_path: Path) -> None:
    async def main() -> None:
        spec = make_spec(["true"])
        owner = Owner(tmp_path, spec)
        owner.ended()
        owner.die()
        record = tmp_path / "attempts" / "job.1" / "record"
        whole = record.read_bytes()
        for torn in (b"", whole[:-1], whole[: len(whole) // 2], whole.replace(b"wait_status 0", b"wait_status 1")):
            record.write_bytes(torn)
            assert Successor(tmp_path).record(spec) is None
        ended = await Successor(tmp_path).judge(spec)
        assert ended is not None
        assert ended.failure is FailureClass.INTERRUPTED

    asyncio.run(main())


def test_daemon_launcher_and_shims_killed_at_once(tmp_path: Path) -> None:
    """Nobody is left to end the tree; it is found by its nonce, and the command by its identity as well."""

    async def main() -> None:
        # `env -i` replaces the command by one without the nonce.
        script = f"setsid sleep 300 & echo $! > {tmp_path}/grandchild; exec env -i sleep 300"
        spec = make_spec(["sh", "-c", script], nonce=f"at-once.{os.getpid()}")
        owner = Owner(tmp_path / "home", spec)
        after = Successor(tmp_path / "home")
        await until(lambda: (tmp_path / "grandchild").exists() and len(with_nonce(spec.nonce)) == 1, "the tree")
        grandchild = int((tmp_path / "grandchild").read_text())
        attempt = after.attempts.attempt("job", 1)
        await until(lambda: None not in (attempt.started() or (None,)), "the note of who they are")
        shim_mark, command = attempt.started() or (None, None)
        assert shim_mark is not None
        assert command is not None
        victims = [owner.process.pid, owner.launcher, shim_mark.pid]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in victims:
                os.kill(pid, number)
        owner.die()
        await until(lambda: not any(map(alive, victims)), "their end")
        assert alive(grandchild)
        assert alive(command.pid)
        ended = await after.settle(spec)
        assert ended.failure is FailureClass.INTERRUPTED
        assert not alive(grandchild)
        assert not alive(command.pid)
        assert after.counters == {"recovery.zombies_cleaned": 2}
        assert attempt.poisoned()

    asyncio.run(main())


def test_a_claim_without_a_folder_or_without_a_start_never_ran(tmp_path: Path) -> None:
    async def main() -> None:
        after = Successor(tmp_path)
        for job_id, make in (("no-folder", False), ("no-start", True)):
            spec = make_spec(["true"], job_id=job_id)
            if make:
                after.attempts.attempt(job_id, 1).create()
            ended = await after.judge(spec)
            assert ended is not None
            assert ended.failure is FailureClass.NEVER_RAN
        assert after.attempts.attempt("no-start", 1).poisoned()

    asyncio.run(main())


def test_after_a_reboot_or_in_another_folder_it_may_have_run(tmp_path: Path) -> None:
    async def main() -> None:
        after = Successor(tmp_path)
        spec = make_spec(["true"])
        after.attempts.attempt("job", 1).create()
        rebooted = await after.judge(spec, boot_id="00000000-0000-0000-0000-000000000000")
        assert rebooted is not None
        assert rebooted.failure is FailureClass.INTERRUPTED
        (tmp_path / "attempts" / ".id").write_text("another folder")
        job = former(after.attempts, spec)
        elsewhere = AttemptsDir(tmp_path / "attempts")
        moved = await FormerAttempts(elsewhere, after.former._tasks, after._add).judge(job)
        assert moved is not None
        assert moved.failure is FailureClass.INTERRUPTED

    asyncio.run(main())


@pytest.mark.parametrize("how", ["poisoned", "emptied"])
def test_a_late_shim_starts_nothing(tmp_path: Path, how: str) -> None:
    """The claim was given up between the fork of the shim and its lock."""

    async def main() -> None:
        async with rig(tmp_path) as r:
            spec = make_spec(["true"])
            attempt = r.attempts.attempt("job", 1)
            attempt.create()
            folder_fd = attempt.open()
            assert (await Successor(tmp_path).judge(spec)) is not None
            if how == "emptied":
                attempt.remove()
                r.attempts.empty_trash()
            specification = sealed(
                "test", b"/\x002\x00touch\x00" + os.fsencode(tmp_path / "ran") + b"\0PATH=/usr/bin:/bin"
            )
            null = os.open("/dev/null", os.O_RDWR)
            request = SpawnRequest(attempt, specification, folder_fd, (null,), 0o22, 0, print, print)
            shim = await r.spawner.spawn(request)
            assert shim is not None
            await asyncio.wait_for(shim.ended(), 10)
            status = await r.spawner.settle(shim)
            r.spawner.release(shim)
            for fd in (folder_fd, specification, null):
                os.close(fd)
            assert status is not None
            assert os.waitstatus_to_exitcode(status) == EXIT_POISONED
            assert attempt.started() is None
            assert not (tmp_path / "ran").exists()

    asyncio.run(main())


def test_a_shim_that_opened_the_lock_before_the_folder_was_emptied_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = AttemptsDir(tmp_path)
    attempt = attempts.attempt("job", 1)
    attempt.create()
    folder_fd = attempt.open()

    def emptied_meanwhile(_lock: int) -> bool:
        with attempt.locked():
            attempt.poison()
        attempt.remove()
        attempts.empty_trash()
        return True

    monkeypatch.setattr(shim, "_take", emptied_meanwhile)
    # None of the other descriptors is looked at.
    task = shim.Task(1, 0o22, 0, (), -1, folder_fd, -1, -1, -1, -1, -1, -1)
    assert shim.run(task) == EXIT_POISONED
    os.close(folder_fd)


def test_an_innocent_process_with_the_pid_of_the_command_is_left_alone(tmp_path: Path) -> None:
    async def main() -> None:
        after = Successor(tmp_path)
        attempt = after.attempts.attempt("job", 1)
        attempt.create()
        innocent = subprocess.Popen(["sleep", "300"])  # noqa: ASYNC220
        try:
            mark = procfs.mark(innocent.pid)
            assert mark is not None
            earlier = mark._replace(start_ticks=mark.start_ticks - 1)
            started = tmp_path / "attempts" / "job.1" / "started"
            started.write_text(f"shim {earlier}\ncommand {earlier}\n")
            await asyncio.wait_for(after.former.wait_unlocked(former(after.attempts, make_spec(["x"]))), 10)
            ended = await after.judge(make_spec(["x"]))
            assert ended is not None
            assert ended.failure is FailureClass.INTERRUPTED
            assert innocent.poll() is None
            assert after.counters == {}
        finally:
            kill(innocent.pid)
            innocent.wait()

    asyncio.run(main())
