"""Steady mixed load with faults: python -m tests.soak --minutes 10 --out FOLDER

Writes home.csv, processes.csv, report.txt and soak.png to the folder. Ends with 1 if something grows, or a promise was
broken. `--leak` runs a build that leaks, which must be found.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.leaky import LEAKS
from tests.soak.run import Plan, Result, soak

LEAST_LIFE_S = 75.0
MOST_LIFE_S = 1800.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("soak"), help="where the samples and the plot go")
    parser.add_argument("--rate", type=float, help="jobs per second; default 40 %% of what the machine does")
    parser.add_argument("--leak", choices=sorted(LEAKS), help="use a build that leaks this for each job")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    seconds = 60 * given.minutes
    # Three lives at least, as far as they can be judged.
    life_s = min(max(seconds / 3, LEAST_LIFE_S), MOST_LIFE_S)
    plan = Plan(seconds=seconds, rate=given.rate, life_s=life_s, leak=given.leak, seed=given.seed)
    folder = Path(tempfile.mkdtemp(prefix="semtask-soak-"))
    began = time.monotonic()
    result = soak(plan, folder / "ground", given.out)
    title = (
        f"semtask soak: {time.monotonic() - began:.0f} s, {result.rate:.1f} jobs/s "
        f"({result.jobs} jobs), seed {given.seed}" + (f", leak of {given.leak}" if given.leak else "")
    )
    report = "\n".join(_report(title, result))
    (given.out / "report.txt").write_text(f"{report}\n")
    print(report)
    if result.wrong:
        print(f"the home is kept in {folder}")
    else:
        shutil.rmtree(folder)
    _plot(result, title, given.out / "soak.png")
    return 1 if result.wrong or result.growing else 0


def _report(title: str, result: Result) -> list[str]:
    lines = [title, *result.summary]
    if result.capacity:
        lines.append(f"this machine does {result.capacity:.1f} jobs/s of this load")
    lines += [f"  {one}" for one in result.growths]
    lines += [f"WRONG: {text}" for text in result.wrong]
    lines += [f"GROWS: {one.name}" for one in result.growing]
    if not result.growths:
        lines.append("nothing lived long enough to be judged: take more minutes")
    elif not result.wrong and not result.growing:
        lines.append("flat, and nothing lost")
    return lines


def _plot(result: Result, title: str, path: Path) -> None:
    try:
        from tests.soak.plot import plot

        plot(result, title, path)
    except ImportError:
        print("no plot: pip install -e '.[soak]' brings matplotlib", file=sys.stderr)
    else:
        print(f"plot: {path}")


if __name__ == "__main__":
    sys.exit(main())
