"""Commands: /bin/true with a full shim against `xargs -P2 -n1 /bin/true`, and the memory of a running command.

python -m benchmarks.commands [--count 1000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.base import CommandSpec
from semtask.executors.spawner import Spawner
from semtask.executors.sub_process import SubprocessExecutor
from semtask.model.job import ProcessIdentity
from semtask.model.state import StopReason

AT_ONCE = 2
SLEEPERS = 50


def spec(job_id: str, *argv: str) -> CommandSpec:
    return CommandSpec(
        job_id=job_id,
        claim_no=1,
        argv=argv,
        env={"PATH": "/usr/bin:/bin", "SEMANTICA_ATTEMPT": f"benchmark.{os.getpid()}.{job_id}"},
        working_dir="/",
        umask=0o22,
        split_stderr=False,
        grace_ms=1000,
        nonce=f"benchmark.{os.getpid()}.{job_id}",
    )


@asynccontextmanager
async def executor(home: Path) -> AsyncIterator[SubprocessExecutor]:
    def open_logs(job_id: str, claim_no: int, _split: bool) -> tuple[int, int | None]:
        return os.open(home / f"{job_id}.{claim_no}.log", os.O_WRONLY | os.O_CREAT, 0o600), None

    attempts = AttemptsDir(home / "attempts")
    spawner = Spawner(attempts, lambda _number: None)
    await spawner.start()
    try:
        yield SubprocessExecutor(attempts, spawner, open_logs, lambda _job, _claim: None, lambda _name, _number: None)
    finally:
        await spawner.close()


async def through_shims(home: Path, count: int) -> float:
    """Commands per second."""
    async with executor(home) as run:

        async def lane(numbers: Iterator[int]) -> None:
            for number in numbers:
                outcome = await run.run(spec(f"job{number}", "/bin/true"), lambda _who: None)
                assert outcome.failure is None, outcome
                run.forget(f"job{number}", 1)

        numbers = iter(range(count))
        began = time.perf_counter()
        await asyncio.gather(*(lane(numbers) for _ in range(AT_ONCE)))
        return count / (time.perf_counter() - began)


def through_xargs(count: int) -> float:
    """Commands per second."""
    words = "\n".join(map(str, range(count))).encode()
    began = time.perf_counter()
    subprocess.run(["xargs", f"-P{AT_ONCE}", "-n1", "/bin/true"], input=words, check=True)
    return count / (time.perf_counter() - began)


async def memory_per_command(home: Path) -> float:
    """Proportional set size of a shim with a running command, in MB."""
    async with executor(home) as run:
        shims: list[int] = []
        all_run = asyncio.Event()

        def started(who: ProcessIdentity) -> None:
            stat = Path(f"/proc/{who.pid}/stat").read_text()
            shims.append(int(stat.rpartition(")")[2].split()[1]))
            if len(shims) == SLEEPERS:
                all_run.set()

        names = [f"sleep{number}" for number in range(SLEEPERS)]
        running = [asyncio.create_task(run.run(spec(name, "sleep", "300"), started)) for name in names]
        await all_run.wait()
        await asyncio.sleep(0.5)  # the shims come to rest
        kilobytes = [_pss(pid) for pid in shims]
        for name in names:
            run.stop(name, 1, StopReason.CANCEL, 0)
        await asyncio.gather(*running)
        return statistics.mean(kilobytes) / 1024


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError("no Pss in smaps_rollup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=1000, help="commands per round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    for number in range(options.rounds):
        home = Path(tempfile.mkdtemp(prefix="semtask-bench-"))
        try:
            ours, theirs = asyncio.run(through_shims(home, options.count)), through_xargs(options.count)
        finally:
            shutil.rmtree(home)
        ratios.append(ours / theirs)
        print(f"round {number + 1}: {ours:.0f}/s through shims, {theirs:.0f}/s by xargs -P{AT_ONCE}: {ratios[-1]:.2f}")
    home = Path(tempfile.mkdtemp(prefix="semtask-bench-"))
    try:
        memory = asyncio.run(memory_per_command(home))
    finally:
        shutil.rmtree(home)
    print(f"commands/true ratio to xargs: {statistics.median(ratios):.2f} (the shim path alone should reach 0.35)")
    print(f"commands/memory of a shim among {SLEEPERS}: {memory:.2f} MB (limit 1.5)")


if __name__ == "__main__":
    main()
