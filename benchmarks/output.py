"""Output: a command that writes 1 GiB into its log, against the same program that writes straight into a file.

python -m benchmarks.output [--mib 1024] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.commands import executor, spec


def writer(mib: int) -> tuple[str, ...]:
    return "/bin/dd", "if=/dev/zero", "bs=64k", f"count={16 * mib}", "status=none"


def straight(home: Path, mib: int) -> float:
    """Seconds."""
    file = home / "straight"
    with file.open("ab") as stdout:
        began = time.perf_counter()
        subprocess.run(writer(mib), stdout=stdout, check=True)
        seconds = time.perf_counter() - began
    file.unlink()
    return seconds


async def through_pump(home: Path, mib: int, rounds: int) -> list[tuple[float, float]]:
    """For each round the seconds of both."""
    found = []
    async with executor(home) as run:
        for number in range(rounds):
            base = straight(home, mib)
            began = time.perf_counter()
            outcome = await run.run(spec(f"job{number}", *writer(mib)), lambda _who: None)
            seconds = time.perf_counter() - began
            assert outcome.failure is None, outcome
            log = home / f"job{number}.1.log"
            assert log.stat().st_size == mib << 20
            log.unlink()
            found.append((base, seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    # Memory, where there is some: how fast a disk is today must not decide.
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        found = asyncio.run(through_pump(Path(folder), given.mib, given.rounds))
    for base, seconds in found:
        print(f"straight {given.mib / base:6.0f} MiB/s, through the pump {given.mib / seconds:6.0f} MiB/s")
    print(f"rate through the pump: {statistics.median(base / seconds for base, seconds in found):.2f} of straight")


if __name__ == "__main__":
    main()
