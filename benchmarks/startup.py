"""How long the command line takes: whole processes, measured in turns with `python -c pass` in one run.

Prints medians in milliseconds, the difference to the bare interpreter, and the limit that the difference (for `run`
the whole) must keep.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROUNDS = 25
PYTHON = [sys.executable, "-c", "pass"]
SEMTASK = [sys.executable, "-m", "semtask"]


class Limit(NamedTuple):
    name: str
    argv: list[str]
    above_python_ms: float | None = None
    total_ms: float | None = None


LIMITS = [
    Limit("semtask version", [*SEMTASK, "version"], above_python_ms=50),
    Limit("semtask enqueue", [*SEMTASK, "enqueue", "nothing", "--arg", "n=1"], above_python_ms=70),
    Limit("semtask run -- true", [*SEMTASK, "run", "--", "true"], total_ms=200),
    Limit("semtask ls", [*SEMTASK, "ls"]),
]


def main() -> int:
    """Run the benchmark; returns 1 if a limit is not kept."""
    home = Path(tempfile.mkdtemp(prefix="semtask-startup-"))
    env = {**os.environ, "SEMANTICA_HOME": str(home)}
    try:
        begin = time.perf_counter()
        subprocess.run([*SEMTASK, "up", "-q"], env=env, check=True)
        print(f"cold start to ready, with the client: {(time.perf_counter() - begin) * 1000:.0f} ms (limit 1000)")
        kept = _measure(env)
        subprocess.run([*SEMTASK, "down", "-q", "--now"], env=env, check=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return 0 if kept else 1


def _measure(env: dict[str, str]) -> bool:
    commands = [Limit("python -c pass", PYTHON), *LIMITS]
    times: dict[str, list[float]] = {limit.name: [] for limit in commands}
    for _ in range(ROUNDS):
        for limit in commands:
            begin = time.perf_counter()
            subprocess.run(limit.argv, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            times[limit.name].append((time.perf_counter() - begin) * 1000)
    bare = statistics.median(times["python -c pass"])
    kept = True
    for limit in commands:
        median = statistics.median(times[limit.name])
        above = median - bare
        verdict = ""
        if limit.above_python_ms is not None:
            verdict = f"limit {limit.above_python_ms:.0f} above python"
            kept &= above <= limit.above_python_ms
        if limit.total_ms is not None:
            verdict = f"limit {limit.total_ms:.0f} in all"
            kept &= median <= limit.total_ms
        print(f"{limit.name:<22} {median:7.1f} ms   {above:+7.1f} ms   {verdict}")
    return kept


if __name__ == "__main__":
    sys.exit(main())
