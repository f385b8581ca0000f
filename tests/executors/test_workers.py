"""Workers: how they start, run jobs one after the other or side by side, and leave nothing behind."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from semtask.host import procfs
from semtask.model.state import EndCause
from semtask.workers import process as worker_process
from semtask.workers import worker
from tests.executors.rig import alive, until, with_nonce
from tests.executors.task_rig import ASYNC, SYNC, task_rig
from tests.mounts import small_disk


def test_a_task_runs_in_a_worker_and_its_result_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            names = {info.name for info in r.status().tasks}
            assert {"noop", "sleep", "crash"} <= names
            end = await r.run("noop", n=41)
            assert end.outcome.failure is None
            assert end.outcome.result == "41"
            assert end.ran_s is not None
            assert 0 <= end.ran_s < 1
            (worker,) = [w for w in r.executor.workers() if w.jobs_done]
            assert (worker.kind, worker.state, worker.app) == ("sync", "idle", "app")
            assert worker.pid is not None
            pids = [worker.pid]
            assert os.readlink(f"/proc/{worker.pid}/fd/0") == "/dev/null"
            assert with_nonce(worker.worker) == pids
        assert not alive(pids[0])

    asyncio.run(main())


def test_an_exception_is_told_in_one_line_and_as_a_whole(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            end = await r.run("fail", text="no\nluck")
            assert end.outcome.end_cause is EndCause.EXCEPTION
            assert end.outcome.error == "ValueError: no luck"
            assert end.outcome.exception is not None
            assert '"message":"no\\nluck"' in end.outcome.exception
            assert "jobs.py" in end.outcome.exception

    asyncio.run(main())


def test_jobs_of_a_batch_run_in_order_in_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RECALL_AFTER_S", 60)  # on a busy machine some would be given back

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            jobs = [r.job("noop", n=n) for n in range(50)]
            await r.start(*jobs)
            for n, job in enumerate(jobs):
                assert (await r.end(job)).outcome.result == str(n)
            assert list(r.ends) == [job.job_id for job in jobs]

    asyncio.run(main())


def test_async_jobs_run_side_by_side_up_to_the_limit(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path, async_jobs=20) as r:
            await r.use(r.write_app(ASYNC))
            taker = await r.taker("asleep")
            assert taker.limit == 20
            jobs = [r.job("asleep", seconds=0.5) for _ in range(20)]
            began = asyncio.get_running_loop().time()
            await r.start(*jobs)
            other = await r.taker("asleep")
            assert other.facts.worker != taker.facts.worker
            for job in jobs:
                assert (await r.end(job)).outcome.result == '"slept"'
            assert asyncio.get_running_loop().time() - began < 5

    asyncio.run(main())


def test_a_large_payload_passes_while_the_worker_does_not_read(tmp_path: Path) -> None:
    code = (
        SYNC
        + "@app.task\ndef size(text: str, seconds: float = 0) -> int:\n    time.sleep(seconds)\n    return len(text)\n"
    )

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(code))
            first = r.job("size", text="", seconds=0.2)
            large = [r.job("size", text="x" * 9_000_000) for _ in range(3)]
            facts = await r.start(first)
            assert facts.worker is not None
            for job in large:
                r.executor.start(facts.worker, [job])
            await r.end(first)
            # What did not begin in time was taken back; the first of them may have been read by then.
            for job in large:
                end = await r.end(job)
                assert end.outcome.result in {None, "9000000"}
            assert (await r.run("size", text="y" * 9_000_000)).outcome.result == "9000000"

    asyncio.run(main())


def test_a_worker_is_gone_with_its_files_and_descriptors(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            await r.run("noop")
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(5):
                await r.run("leave", code=0)
            await until(lambda: len(r.pids("idle")) == 1 and len(r.pids()) == 1, "a new spare")
            assert len(os.listdir("/proc/self/fd")) <= before
            assert len(r.folders()) == 1

    asyncio.run(main())


REOPENING = """
@app.task
def reopens(script: str, dies: bool) -> None:
    print("zero")
    subprocess.run(["bash", "-c", script], check=True)
    print("three")
    os.system("echo four | tee -a /dev/stderr")
    open("/dev/stdout", "w").write("five\\n")
    print("x" * 50_000)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_task_starts_may_open_its_output_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(REOPENING))
            before = None
            for dies in (False, False, True):
                job = r.job("reopens", script="echo one; echo two > /dev/stderr", dies=dies)
                await r.start(job)
                ended = await r.end(job)
                assert ended.outcome.end_cause is (EndCause.WORKER_CRASH if dies else EndCause.SUCCESS), ended
                lines = [line.rpartition(" ")[2] for line in r.log_of(job).splitlines()]
                assert lines[:8] == ["zero", "one", "two", "three", "four", "four", "five", "x" * 50_000]
                if not dies:
                    assert ended.outcome.log_bytes == len(r.log_of(job))
                    [done] = [w for w in r.executor.workers() if w.jobs_done]
                    shim = procfs.stat(done.pid or 0)
                    assert shim is not None
                    counted = [len(os.listdir(f"/proc/{pid}/fd")) for pid in (done.pid, shim.parent)]
                    assert counted == (before or counted)
                    before = counted

    asyncio.run(main())


OPENING_ITSELF = """
@app.task
def opens(code: str, n: int, dies: bool) -> None:
    os.write(n, b"one\\n")
    scope = dict(globals(), n=n, path=f"/proc/self/fd/{n}", name=f"/dev/std{'out' if n == 1 else 'err'}")
    exec(code, scope)
    os.write(n, b"three\\n")
    ctypes.CDLL(None).puts(b"four")
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)

@app.task
async def opens_beside_others(code: str, n: int) -> None:
    os.write(n, b"one\\n")
    exec(code, dict(globals(), n=n, path=f"/proc/self/fd/{n}", name=f"/dev/std{'out' if n == 1 else 'err'}"))
    await (await asyncio.create_subprocess_shell("echo three > /dev/stderr; echo four")).wait()

@app.task
def floods(lines: int) -> None:
    os.set_blocking(1, False)
    print("printed")
    data = b"%07d " % lines + b"x" * 991 + b"\\n"
    for _ in range(lines):
        rest = data
        while rest:
            try:
                rest = rest[os.write(1, rest):]
            except BlockingIOError:
                time.sleep(0.001)

@app.task
def prints(lines: int) -> None:
    subprocess.run([sys.executable, "-ISc", "import os; os.set_blocking(1, False)"], check=True)
    print(("z" * 999 + "\\n") * lines, end="")

@app.task
def writes() -> None:
    rest = b"y" * 3_000_000
    while rest:
        rest = rest[os.write(1, rest):]

@app.task
def blocks() -> list:
    return [os.get_blocking(1), os.get_blocking(2), os.getpid()]
"""

# Each says `two` to the stream of descriptor n, which is opened again or treated as a file.
OPENED = {
    "by name": "print('two', file=open(name, 'w'), flush=True)",
    "by number": "print('two', file=open(path, 'w'), flush=True)",
    "truncating": "os.write(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT), b'two\\n')",
    "writing anywhere": "os.write(os.open(path, os.O_WRONLY), b'two\\n')",
    "appending": "print('two', file=open(path, 'a'), flush=True)",
    "truncate": """
        try: os.truncate(path, 0)
        except OSError: pass
        os.write(n, b'two\\n')""",
    "ftruncate": """
        try: os.ftruncate(n, 0)
        except OSError: pass
        os.write(n, b'two\\n')""",
    "seeking": """
        try: os.lseek(n, 0, os.SEEK_SET)
        except OSError: pass
        os.write(n, b'two\\n')""",
    "at a position": """
        try: os.pwrite(n, b'no', 0)
        except OSError: pass
        os.write(n, b'two\\n')""",
    "a duplicate": "print('two', file=open(os.dup(n), 'w'), flush=True)",
    "C": "ctypes.CDLL(None).system(b'echo two > ' + path.encode())",
}


NUMBERS = ["one", "two", "three", "four"]


def test_a_task_that_opens_its_own_output_again_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(OPENING_ITSELF))
            for dies in (False, True):
                for how, code in OPENED.items():
                    if dies and how not in {"by name", "ftruncate"}:
                        continue
                    for n in (1, 2):
                        job = r.job("opens", code=textwrap.dedent(code), n=n, dies=dies)
                        await r.start(job)
                        ended = await r.end(job)
                        cause = EndCause.WORKER_CRASH if dies else EndCause.SUCCESS
                        assert ended.outcome.end_cause is cause, (how, ended)
                        lines = [line.rpartition(" ")[2] for line in r.log_of(job).splitlines()]
                        assert [line for line in lines if line in NUMBERS] == NUMBERS, (how, n, lines)
                        assert ended.outcome.log_bytes == len(r.log_of(job))

    asyncio.run(main())


def test_what_async_tasks_open_again_keeps_the_log_of_their_worker(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(OPENING_ITSELF))
            wanted = []
            for code in OPENED.values():
                for n in (1, 2):
                    end = await r.run("opens_beside_others", code=textwrap.dedent(code), n=n)
                    assert end.outcome.end_cause is EndCause.SUCCESS, end
                    wanted += NUMBERS
            logs = [Path(r.attempts.path, name, "log") for name in r.folders()]
            await until(lambda: wanted in [log.read_text().split() for log in logs], "all of it")

    asyncio.run(main())


def test_what_a_killed_shim_had_not_read_of_a_task_is_in_its_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            code = """
                def says(n):
                    open("runs", "w").close()
                    while not os.path.exists("go"): time.sleep(0.01)
                    os.write(n, b"five\\n")
                    open("said", "w").close()
                    time.sleep(60)
                says(n)"""
            app = r.write_app(OPENING_ITSELF)
            await r.use(app)
            job = r.job("opens", code=textwrap.dedent(code), n=1, dies=False)
            facts = await r.runs(job)
            started = r.attempts.attempt((facts.worker or "").removesuffix(".1"), 1).started()
            assert started is not None
            assert started.shim is not None
            os.kill(started.shim.pid, signal.SIGSTOP)
            Path(app.directory, "go").touch()
            await until(Path(app.directory, "said").exists, "it is written")
            os.kill(started.shim.pid, signal.SIGKILL)
            assert (await r.end(job)).outcome.end_cause is EndCause.WORKER_CRASH
            assert r.log_of(job).splitlines()[-2:] == ["one", "five"]

    asyncio.run(main())


@pytest.mark.parametrize("can_punch", [True, False])
def test_what_tasks_have_written_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_punch: bool
) -> None:
    def refuse(fd: int, start: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(OPENING_ITSELF))
            before = (await r.run("blocks")).outcome.result
            most = 0
            for _ in range(5):
                job = r.job("floods", lines=3000)
                await r.start(job)
                assert (await r.end(job)).outcome.end_cause is EndCause.SUCCESS
                text = r.log_of(job)
                assert text.count("x" * 991 + "\n") == 3000
                assert text.partition("\n")[0].endswith("printed")
                for name in r.folders():
                    most = max(most, Path(r.attempts.path, name, "log").stat().st_blocks * 512)
            assert most < 11 << 20
            now = (await r.run("blocks")).outcome.result
            assert (now == before) is can_punch

    if not can_punch:
        monkeypatch.setattr(worker_process, "punch_hole", refuse)
    asyncio.run(main())


def test_a_full_disk_stops_no_task_that_writes_to_its_descriptors(tmp_path: Path) -> None:
    async def main(disk: Path) -> None:
        async with task_rig(disk) as r:
            await r.use(r.write_app(OPENING_ITSELF))
            before = (await r.run("blocks")).outcome.result
            ballast = disk / "ballast"
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            assert (await r.run("writes")).outcome.end_cause is EndCause.SUCCESS
            ballast.unlink()
            job = r.job("opens", code=OPENED["by name"], n=1, dies=False)
            await r.start(job)
            assert (await r.end(job)).outcome.end_cause is EndCause.SUCCESS
            lines = [line.rpartition(" ")[2] for line in r.log_of(job).splitlines()]
            assert [line for line in lines if line in NUMBERS] == NUMBERS
            assert (await r.run("blocks")).outcome.result == before
            logs = b"".join(Path(r.attempts.path, name, "log").read_bytes() for name in r.folders())
            rest, _, tail = logs.partition(b"\n[... ")
            count = int(tail.partition(b" bytes could not be written: No space left on device")[0].replace(b",", b""))
            assert rest.count(b"y") + count == 3_000_000

    with small_disk(tmp_path / "disk", 4) as disk:
        asyncio.run(main(disk))


def test_a_pipe_that_a_process_has_made_non_blocking_fails_no_print(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(OPENING_ITSELF))
            job = r.job("prints", lines=8000)
            await r.start(job)
            ended = await r.end(job)
            assert ended.outcome.end_cause is EndCause.SUCCESS, ended
            assert r.log_of(job).count("z" * 999 + "\n") == 8000

    asyncio.run(main())
