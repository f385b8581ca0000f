"""Workers: how they start, run jobs one after the other or side by side, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from semtask.executors import worker
from semtask.host import procfs
from semtask.model.state import EndCause
from tests.executors.rig import alive, until, with_nonce
from tests.executors.task_rig import ASYNC, SYNC, task_rig


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
