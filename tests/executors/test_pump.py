"""The way of the output of a command into its log: opened again in every way, kept in a crash and on a full disk."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from semtask.launch.pump import Pump, Pumps
from semtask.model.state import EndCause
from tests.executors.rig import Rig, kill, make_spec, rig, until
from tests.mounts import small_disk

# Each prints `one` and `three` to the stream that it was given, and `two` to the same one, which it opens again.
REOPENED = {
    "truncating": "echo one; echo two > /dev/std{s}; echo three",
    "appending": "echo one; echo two >> /dev/std{s}; echo three",
    "by number": "echo one; echo two > /proc/self/fd/{n}; echo three",
    "by /dev/fd": "echo one; echo two > /dev/fd/{n}; echo three",
    "of another process": "echo one; sh -c 'echo two > /proc/'$$'/fd/{n}'; echo three",
    "tee": "echo one; echo two | tee /proc/$$/fd/{n} > /dev/null; echo three",
    "tee -a": "echo one; echo two | tee -a /proc/$$/fd/{n} > /dev/null; echo three",
    "dd": "echo one; echo two | dd of=/proc/$$/fd/{n} 2> /dev/null; echo three",
    "cp": "echo one; echo two > two; cp two /dev/std{s}; echo three",
    "truncate": "echo one; echo two; truncate -s 0 /proc/$$/fd/{n} 2> /dev/null; echo three",
    "ftruncate": "echo one; echo two; {python} -c 'import os; {refused}os.ftruncate({n}, 0)'; echo three",
    "seeking": "echo one; echo two; {python} -c 'import os; {refused}os.lseek({n}, 0, 0)'; echo three",
    "python": 'echo one; {python} -c \'open("/dev/std{s}", "w").write("two\\n")\'; echo three',
    "a child that stays": "echo one; (exec > /dev/std{s}; echo two) & wait; echo three",
}

REFUSED = "from contextlib import suppress\nwith suppress(OSError): "


def test_what_opens_its_output_again_loses_nothing(tmp_path: Path) -> None:
    async def one(r: Rig, job_id: str, argv: list[str], *, split: bool, stream: str) -> None:
        folder = tmp_path / f"{job_id}.d"
        folder.mkdir()
        end = await r.run(make_spec(argv, job_id=job_id, split=split, working_dir=str(folder)))
        assert end.end_cause is EndCause.SUCCESS, job_id
        assert r.output(job_id, 1, stream) == "one\ntwo\nthree\n", job_id

    async def main() -> None:
        async with rig(tmp_path) as r:
            for split in (False, True):
                for n, name in (1, "out"), (2, "err"):
                    stream = "err" if split and n == 2 else "out"
                    for number, script in enumerate(REOPENED.values()):
                        text = script.format(s=name, n=n, python=f"{sys.executable} -I -S", refused=REFUSED)
                        # For stderr everything goes there.
                        argv = ["bash", "-c", f"exec >&2; {text}" if n == 2 else text]
                        await one(r, f"{name}-{split}-{number}", argv, split=split, stream=stream)

    asyncio.run(main())


def test_merged_streams_keep_their_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.python("import os\nfor i in range(20000): os.write(1 + i % 2, b'%d\\n' % i)", umask=0o77)
            assert r.output() == "".join(f"{i}\n" for i in range(20000))

    asyncio.run(main())


@pytest.mark.parametrize("launcher_too", [False, True])
def test_what_a_killed_shim_had_not_read_is_in_the_log(tmp_path: Path, launcher_too: bool) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            script = f"echo begin; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; seq 5000; touch {tmp_path}/said"
            running = r.begin(make_spec(["sh", "-c", f"{script}; exec sleep 60"]))
            await until(lambda: r.output() == "begin\n", "the first line")
            os.kill(r.shim_of(), signal.SIGSTOP)
            (tmp_path / "go").touch()
            await until((tmp_path / "said").exists, "the rest is written")
            if launcher_too:
                kill(r.launcher_pid())
            kill(r.shim_of())
            await asyncio.wait_for(running, 20)
            assert r.output() == "begin\n" + "".join(f"{i}\n" for i in range(1, 5001))

    asyncio.run(main())


def test_a_pipe_that_somebody_else_holds_open_delays_no_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            running = r.begin(make_spec(["sh", "-c", f"echo in; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"]))
            stream = os.open(f"/proc/{await r.command_of()}/fd/1", os.O_WRONLY)
            try:
                os.write(stream, b"from outside\n")
                (tmp_path / "go").touch()
                assert (await asyncio.wait_for(running, 20)).end_cause is EndCause.SUCCESS
                assert sorted(r.output().splitlines()) == ["from outside", "in"]
            finally:
                os.close(stream)

    asyncio.run(main())


def test_no_descriptor_is_left_however_an_attempt_ends(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.run(make_spec(["true"], job_id="first"))

            def count(pid: int) -> int:
                return len(os.listdir(f"/proc/{pid}/fd"))

            before = count(os.getpid()), count(r.launcher_pid())
            for split in (False, True):
                await r.run(make_spec(["echo", "x"], job_id=f"ends-{split}", split=split))
                await r.run(make_spec(["/not/there"], job_id=f"refused-{split}", split=split))
                await r.run(make_spec(["a\0b"], job_id=f"invalid-{split}", split=split))
                lost = f"lost-{split}"
                running = r.begin(make_spec(["sleep", "60"], job_id=lost, split=split))
                await r.command_of(lost)
                kill(r.shim_of(lost))
                await asyncio.wait_for(running, 20)
                with pytest.raises(FileExistsError):  # the claim number is used
                    r.attempts.attempt(lost, 1).create()
                await r.run(make_spec(["true"], job_id=lost, split=split))
            await until(lambda: (count(os.getpid()), count(r.launcher_pid())) == before, "all closed")

    asyncio.run(main())


def test_a_full_disk_stops_no_command_and_the_log_says_what_is_missing(tmp_path: Path) -> None:
    async def main(disk: Path) -> None:
        async with rig(tmp_path / "home") as r:
            log = disk / "log"
            r.executor._open_logs = lambda *_: (os.open(log, os.O_WRONLY | os.O_CREAT), None)
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(3 << 20))
            script = (
                "head -c 30000000 /dev/zero | tr '\\0' x; touch said;"
                "while [ ! -e go ]; do sleep 0.02; done; echo; echo end"
            )
            running = r.begin(make_spec(["sh", "-c", script], working_dir=str(tmp_path)))
            await until((tmp_path / "said").exists, "it was not stopped")
            ballast.unlink()
            (tmp_path / "go").touch()
            assert (await asyncio.wait_for(running, 20)).end_cause is EndCause.SUCCESS
            head, _, tail = log.read_bytes().partition(b"\n[... ")
            count, _, reason = tail.partition(b" bytes could not be written: ")
            assert set(head) == {ord("x")}
            assert len(head) + int(count.replace(b",", b"")) == 30_000_000
            assert reason == b"No space left on device ...]\n\nend\n"

    with small_disk(tmp_path / "disk", 8) as disk:
        asyncio.run(main(disk))


def test_a_file_system_without_splice(tmp_path: Path) -> None:
    """It answers as a file does that is opened for appending."""
    source, stream = os.pipe()
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pump = Pump(source, log)
    data = os.urandom(60_000)
    os.write(stream, data)
    pump.drain()
    with pytest.raises(BlockingIOError):
        pump.move()
    os.close(stream)
    assert pump.move() == 0
    pump.close()
    assert (tmp_path / "log").read_bytes() == data


def test_a_pump_rests_when_the_command_has_closed_its_output(tmp_path: Path) -> None:
    source, stream = os.pipe()
    pumps = Pumps([Pump(source, os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT))])
    os.write(stream, b"last")
    os.close(stream)
    polled: list[float | None] = []

    class Poll:
        """Counts, so that a busy loop is seen."""

        def __init__(self) -> None:
            self._poll = select.poll()
            self.register, self.unregister = self._poll.register, self._poll.unregister

        def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
            polled.append(timeout_ms)
            return self._poll.poll(timeout_ms)

    assert pumps.poll(Poll(), 30) == []  # type: ignore[arg-type]
    assert len(polled) <= 4
    pumps.close()
    assert (tmp_path / "log").read_bytes() == b"last"
