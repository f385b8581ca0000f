"""Launcher or shims are killed with -9 while the daemon lives."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from semtask.launch import control
from semtask.model.outcome import FailureClass
from semtask.model.state import EndCause, StopReason
from tests.executors.rig import alive, kill, make_spec, reap_adopted, rig, until, with_nonce
from tests.executors.test_stopping import MEMBERS, TREE, tree_pids


@pytest.fixture(autouse=True)
def _no_strays() -> Iterator[None]:
    reap_adopted()
    yield
    reap_adopted()


def test_fifty_commands_outlive_their_launcher(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            first = r.launcher_pid()
            specs = [
                make_spec(["sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done"], job_id=f"job{i}")
                for i in range(50)
            ]
            running = [r.begin(spec) for spec in specs]
            await until(lambda: len(r.started) == 50, "all 50 run")
            pids = {job_id: who.pid for job_id, who in r.started.items()}
            kill(first)
            await until(lambda: not alive(first), "the launcher's end")
            # A new one serves while they go on.
            assert (await asyncio.wait_for(r.run(make_spec(["true"], job_id="next")), 20)).end_cause is EndCause.SUCCESS
            assert r.launcher_pid() != first
            assert all(map(alive, pids.values()))
            (tmp_path / "go").touch()
            ended = await asyncio.wait_for(asyncio.gather(*running), 30)
            assert [e.end_cause for e in ended] == [EndCause.SUCCESS] * 50
            assert all(r.attempts.attempt(spec.job_id, 2).exists() is False for spec in specs)
            assert r.orphans == 0

    asyncio.run(main())


def test_spawns_that_a_dead_launcher_never_saw_are_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            launcher = r.launcher_pid()
            os.kill(launcher, signal.SIGSTOP)
            marks = [tmp_path / f"ran{i}" for i in range(5)]
            running = [r.begin(make_spec(["touch", str(mark)], job_id=mark.name)) for mark in marks]
            await until(lambda: all(r.attempts.attempt(m.name, 1).exists() for m in marks), "the folders")
            kill(launcher)
            ended = await asyncio.wait_for(asyncio.gather(*running), 20)
            assert [e.failure for e in ended] == [FailureClass.NEVER_RAN] * 5
            assert all(r.attempts.attempt(mark.name, 1).poisoned() for mark in marks)
            assert (await r.run(make_spec(["true"], job_id="next"))).end_cause is EndCause.SUCCESS
            assert not any(mark.exists() for mark in marks)

    asyncio.run(main())


@pytest.mark.parametrize("ended_already", [False, True])
def test_a_shim_whose_answer_got_lost_is_adopted(tmp_path: Path, ended_already: bool) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            process = r.spawner._process
            assert process is not None
            take = process._take

            def lose_answers(kind: bytes, request: int, value: int, fds: list[int]) -> None:
                if kind == control.SPAWNED:
                    os.close(fds[0])
                else:
                    take(kind, request, value, fds)

            process._take = lose_answers  # type: ignore[method-assign]
            script = "true" if ended_already else f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
            running = r.begin(make_spec(["sh", "-c", f"{script}; exit 3"]))
            folder = r.attempts.attempt("job", 1)
            if ended_already:
                await until(folder.record, "the record")
            else:
                await r.command_of()
            kill(r.launcher_pid())
            await asyncio.sleep(0.1)
            assert ended_already or not running.done()
            (tmp_path / "go").touch()
            ended = await asyncio.wait_for(running, 20)
            assert (ended.exit_code, folder.poisoned()) == (3, False)

    asyncio.run(main())


@pytest.mark.parametrize("launcher_too", [False, True])
def test_a_killed_shim_is_a_crash_and_its_tree_is_gone(tmp_path: Path, launcher_too: bool) -> None:
    async def main() -> None:
        async with rig(tmp_path / "home") as r:
            spec = make_spec([sys.executable, "-c", TREE, str(tmp_path)])
            running = r.begin(spec)
            pids = await tree_pids(tmp_path)
            if launcher_too:
                first = r.launcher_pid()
                kill(first)
                await until(lambda: not alive(first), "the launcher's end")
            kill(r.shim_of())
            ended = await asyncio.wait_for(running, 20)
            assert (ended.end_cause, ended.failure) == (EndCause.WORKER_CRASH, FailureClass.CRASH)
            assert ended.error is not None
            assert "signal 9" in ended.error
            assert {name: alive(pid) for name, pid in pids.items()} == dict.fromkeys(MEMBERS, False)
            assert with_nonce(spec.nonce) == []
            assert r.orphans + r.counters["recovery.zombies_cleaned"] >= 5
            assert r.attempts.attempt("job", 1).poisoned()

    asyncio.run(main())


def test_a_killed_shim_takes_no_other_attempt_along(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            victim = r.begin(make_spec(["sleep", "300"], job_id="victim"))
            other = r.begin(make_spec(["sh", "-c", "setsid sleep 300 & wait"], job_id="other"))
            await r.command_of("victim")
            pid = await r.command_of("other")
            kill(r.shim_of("victim"))
            assert (await asyncio.wait_for(victim, 20)).failure is FailureClass.CRASH
            assert alive(pid)
            assert not other.done()
            r.executor.stop("other", 1, StopReason.CANCEL, 0)
            await other

    asyncio.run(main())


def test_close_ends_what_runs_and_waits_for_the_launcher(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            launcher = r.launcher_pid()
            running = r.begin(make_spec(["sleep", "300"], grace_ms=200))
            pid = await r.command_of()
            await asyncio.wait_for(r.spawner.close(), 20)
            assert not alive(launcher)
            assert not alive(pid)
            assert (await running).failure is FailureClass.INTERRUPTED
            assert (await r.run(make_spec(["true"], job_id="late"))).failure is FailureClass.NEVER_RAN

    asyncio.run(main())
