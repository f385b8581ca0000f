"""Stopping: everything that an attempt started is gone before its outcome is known."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from semtask.launch.folder import Record, Stop
from semtask.model.outcome import FailureClass
from semtask.model.state import EndCause, StopReason
from tests.executors.rig import Rig, alive, make_spec, rig, until, with_nonce

# A tree that does what it can to survive: sessions of its own, double forks, no environment, SIGTERM ignored.
TREE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
folder = sys.argv[1]
def here(name):
    with open(f"{folder}/{name}.tmp", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{folder}/{name}.tmp", f"{folder}/{name}.pid")
def child(name, *, session=False, double=False, bare=False):
    if os.fork():
        return
    if session:
        os.setsid()
    if double and os.fork():
        os._exit(0)
    here(name)
    if bare:
        for fd in range(3):
            os.close(fd)
        os.execve("/bin/sleep", ["sleep", "300"], {})
    while True:
        time.sleep(300)
child("plain")
child("session", session=True)
child("daemonized", session=True, double=True)
child("bare", session=True, double=True, bare=True)
here("main")
while True:
    time.sleep(300)
"""
MEMBERS = ("plain", "session", "daemonized", "bare", "main")

# Four chains that hop from session to session: each hop is a new process, and the old one is gone.
RACER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for chain in range(4):
    if os.fork() == 0:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.0005)
            if os.fork():
                os._exit(0)
            os.setsid()
        os._exit(0)
open(sys.argv[1] + "/racing", "w").close()
time.sleep(60)
"""


async def tree_pids(folder: Path) -> dict[str, int]:
    await until(lambda: all((folder / f"{name}.pid").exists() for name in MEMBERS), "the whole tree")
    return {name: int((folder / f"{name}.pid").read_text()) for name in MEMBERS}


def record_of(r: Rig, job_id: str = "job") -> Record:
    record = r.attempts.attempt(job_id, 1).record()
    assert record is not None
    return record


def test_a_tree_that_wants_to_survive_is_gone_after_stop(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path / "home") as r:
            running = r.begin(make_spec([sys.executable, "-c", TREE, str(tmp_path)]))
            pids = await tree_pids(tmp_path)
            r.executor.stop("job", 1, StopReason.CANCEL, 200)
            ended = await running
            assert {name: alive(pid) for name, pid in pids.items()} == dict.fromkeys(MEMBERS, False)
            assert ended.signal == signal.SIGKILL
            assert record_of(r).stop == "cancel"
            assert record_of(r).swept >= 4

    asyncio.run(main())


def test_a_tree_that_outlives_its_command_is_gone_at_its_end(tmp_path: Path) -> None:
    """The grandchild holds stdout open; the command ends at once and so does the attempt."""

    async def main() -> None:
        async with rig(tmp_path) as r:
            began = time.monotonic()
            ended = await r.run(make_spec(["sh", "-c", "setsid sleep 300 & sleep 300 & echo $! ; exit 5"]))
            assert time.monotonic() - began < 10
            assert ended.exit_code == 5
            assert not alive(int(r.output()))
            assert with_nonce(make_spec(["x"]).nonce) == []
            assert record_of(r).stop == ""

    asyncio.run(main())


def test_a_racer_is_gone_after_stop(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path / "home") as r:
            spec = make_spec([sys.executable, "-c", RACER, str(tmp_path)])
            running = r.begin(spec)
            await until((tmp_path / "racing").exists, "racing")
            r.executor.stop("job", 1, StopReason.CANCEL, 50)
            await asyncio.wait_for(running, 15)
            assert with_nonce(spec.nonce) == []

    asyncio.run(main())


def test_sigterm_is_enough_for_a_command_that_heeds_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            script = "trap 'echo bye; exit 7' TERM; sh -c 'echo up; exec sleep 300' & wait"
            running = r.begin(make_spec(["sh", "-c", script]))
            await until(lambda: "up" in r.output(), "the trap")
            r.executor.stop("job", 1, StopReason.TIMEOUT, 60_000)
            ended = await asyncio.wait_for(running, 10)
            assert (ended.exit_code, ended.failure) == (7, FailureClass.HANDLER)
            assert r.output() == "up\nbye\n"
            assert record_of(r).stop == "timeout"

    asyncio.run(main())


# Cleans up after SIGTERM, which takes longer than its parents live. The child that it starts for that needs it, too.
CLEAN = """
import os, signal, subprocess, sys, time
def end(number, frame):
    print(name, "asked", file=sys.stderr)
    subprocess.run(["sh", "-c", f"sleep 0.3; echo {name} cleaned >&2"])
    os._exit(0)
name = sys.argv[1]
if name == "session":
    os.setsid()
if name == "orphan" and os.fork():
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print(name, "up", file=sys.stderr)
while True:
    signal.pause()
"""
CLEANERS = {
    "child": "{} child; echo next",
    "background": "{} background & wait",
    "pipeline": "{} pipeline | cat",
    "xargs": "echo xargs | xargs {}",
    "subprocess": "{python} -c 'import subprocess, sys; subprocess.run(sys.argv[1:])' {} subprocess",
    "session": "{} session & wait",
    "orphan": "{} orphan; sleep 300",
    "bare": "env -i {} bare",
    "stopped": "{} stopped & sleep 300",
}


def test_every_process_of_the_tree_is_asked_once_and_gets_the_whole_grace(tmp_path: Path) -> None:
    """Whatever is between it and the command. What it starts to clean up is not disturbed."""

    async def main() -> None:
        async with rig(tmp_path / "home") as r:
            (tmp_path / "clean.py").write_text(CLEAN)
            clean = f"{sys.executable} {tmp_path / 'clean.py'}"
            running = {}
            for name, line in CLEANERS.items():
                script = line.replace("{python}", sys.executable).replace("{}", clean)
                running[name] = r.begin(make_spec(["sh", "-c", script], job_id=name))
            for name in CLEANERS:
                await until(lambda name=name: f"{name} up" in r.output(name), f"{name} is up")  # type: ignore[misc]
            for pid in with_nonce(make_spec(["x"], job_id="stopped").nonce):
                os.kill(pid, signal.SIGSTOP)
            for name in CLEANERS:
                r.executor.stop(name, 1, StopReason.CANCEL, 60_000)
            for name, end in running.items():
                await asyncio.wait_for(end, 30)
                assert r.output(name).splitlines() == [f"{name} up", f"{name} asked", f"{name} cleaned"], name
                assert record_of(r, name).stop == "cancel"
                assert record_of(r, name).swept == 0

    asyncio.run(main())


def test_the_grace_of_a_tree_ends_and_can_get_shorter(tmp_path: Path) -> None:
    """Also after the command itself has ended, with its own status kept."""

    async def main() -> None:
        async with rig(tmp_path) as r:
            stubborn = "trap '' TERM; echo up; while :; do sleep 300; done"
            running = r.begin(make_spec(["sh", "-c", f'trap "exit 7" TERM; sh -c "{stubborn}" & wait']))
            await until(lambda: "up" in r.output(), "the child")
            command = await r.command_of()
            r.executor.stop("job", 1, StopReason.CANCEL, 60_000)
            await until(lambda: not alive(command), "the end of the command")
            assert not running.done()
            r.executor.stop("job", 1, StopReason.CANCEL, 0)
            ended = await asyncio.wait_for(running, 10)
            assert ended.exit_code == 7
            assert record_of(r).swept >= 1
            assert with_nonce(make_spec(["x"]).nonce) == []

    asyncio.run(main())


def test_a_stopped_command_is_continued_so_that_it_can_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            running = r.begin(make_spec(["sh", "-c", "trap 'exit 9' TERM; echo up; kill -STOP $$; sleep 300"]))
            await until(lambda: "up" in r.output(), "the trap")
            pid = await r.command_of()
            await until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] == "T", "stopped")
            r.executor.stop("job", 1, StopReason.CANCEL, 60_000)
            assert (await asyncio.wait_for(running, 10)).exit_code == 9

    asyncio.run(main())


def test_a_second_stop_can_only_shorten_the_grace(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            running = r.begin(make_spec(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 300; done"]))
            await until(lambda: "up" in r.output(), "the trap")
            began = time.monotonic()
            r.executor.stop("job", 1, StopReason.SHUTDOWN, 60_000)
            r.executor.stop("job", 1, StopReason.CANCEL, 300)
            r.executor.stop("job", 1, StopReason.CANCEL, 60_000)
            await asyncio.sleep(0.1)  # the shim has read that
            r.attempts.attempt("job", 1).ask_to_stop(Stop("cancel", 60_000))
            os.kill(r.shim_of(), signal.SIGTERM)
            ended = await asyncio.wait_for(running, 20)
            assert ended.signal == signal.SIGKILL
            assert 0.25 < time.monotonic() - began < 20

    asyncio.run(main())


def test_a_stop_before_the_shim_exists_is_not_lost(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            before = r.begin(make_spec(["sleep", "300"], job_id="before"))
            await asyncio.sleep(0)  # it has begun, and waits for the launcher
            r.executor.stop("before", 1, StopReason.CANCEL, 0)
            ended = await asyncio.wait_for(before, 10)
            assert ended.signal in {signal.SIGTERM, signal.SIGKILL}

    asyncio.run(main())


def test_a_stop_before_anything_was_handed_over_starts_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            open_logs = r._open_logs

            def stop_meanwhile(job_id: str, claim_no: int, split: bool) -> tuple[int, int | None]:
                r.executor.stop(job_id, claim_no, StopReason.CANCEL, 0)
                return open_logs(job_id, claim_no, split)

            r.executor._open_logs = stop_meanwhile
            ended = await r.run(make_spec(["touch", str(tmp_path / "ran")]))
            assert ended.failure is FailureClass.NEVER_RAN
            assert not (tmp_path / "ran").exists()

    asyncio.run(main())


def test_a_stop_of_something_unknown_is_ignored(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            r.executor.stop("nobody", 3, StopReason.CANCEL, 0)
            assert (await r.run(make_spec(["true"]))).end_cause is EndCause.SUCCESS

    asyncio.run(main())


def test_a_tree_that_does_not_go_is_told_of_and_waited_for(tmp_path: Path) -> None:
    """The shim is held up in the middle of its work, as it would be by a process in state D."""

    async def main() -> None:
        async with rig(tmp_path, kill_patience_s=0.2) as r:
            running = r.begin(make_spec(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 300; done"]))
            await until(lambda: "up" in r.output(), "the trap")
            shim = r.shim_of()
            r.executor.stop("job", 1, StopReason.CANCEL, 200)
            os.kill(shim, signal.SIGSTOP)
            await until(lambda: r.kill_failed, "kill failed")
            assert r.kill_failed == [("job", 1)]
            assert not running.done()
            os.kill(shim, signal.SIGCONT)
            assert (await asyncio.wait_for(running, 10)).signal == signal.SIGKILL
            assert r.kill_failed == [("job", 1)]

    asyncio.run(main())


def test_a_shim_that_cannot_end_what_its_command_left_says_so(tmp_path: Path) -> None:
    """No process outlives SIGKILL at a test's wish, so the word of the shim is forged."""

    async def main() -> None:
        async with rig(tmp_path) as r:
            running = r.begin(make_spec(["sleep", "300"]))
            await r.command_of()
            (shim,) = r.spawner._shims.values()
            os.write(r.spawner._notices_in, f"{shim.request} stuck\n{shim.request} stuck\n99 stuck\n".encode())
            await until(lambda: r.kill_failed, "the word of the shim")
            r.executor.stop("job", 1, StopReason.CANCEL, 0)
            await running
            assert r.kill_failed == [("job", 1)]

    asyncio.run(main())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_a_process_of_another_user_is_ended_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            running = r.begin(make_spec(["setpriv", "--reuid=65534", "sleep", "300"]))
            pid = await r.command_of()
            await until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the change of user")
            r.executor.stop("job", 1, StopReason.CANCEL, 5000)
            assert (await asyncio.wait_for(running, 10)).signal == signal.SIGTERM

    asyncio.run(main())


def test_an_end_that_is_learnt_late_is_no_failed_kill(tmp_path: Path) -> None:
    def be_stopped() -> None:
        time.sleep(1)

    async def main() -> None:
        async with rig(tmp_path, kill_patience_s=0.1) as r:
            running = r.begin(make_spec(["sleep", "300"]))
            command = await r.command_of()
            r.executor.stop("job", 1, StopReason.CANCEL, 100)
            be_stopped()  # as a daemon by SIGSTOP; its shims go on
            assert not alive(command)
            await running
            assert r.kill_failed == []

    asyncio.run(main())
