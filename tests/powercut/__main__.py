"""The long form, with its figures: `python -m tests.powercut [--images N] [--seed S]`. Exit code 1: a promise broke."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.powercut.load import record
from tests.powercut.replay import replay

RECORDINGS = 4


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.powercut")
    arguments.add_argument("--images", type=int, default=1600, help="of the daemon, over all its recordings")
    arguments.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = arguments.parse_args()
    begin = time.monotonic()
    print(f"power cuts, seed {options.seed}")
    bad = 0
    total = 0
    for number in range(RECORDINGS):
        with tempfile.TemporaryDirectory(prefix="semtask-powercut-") as folder:
            recorded = record(Path(folder) / "home", 4, kill=number % 2 == 1)
            verdict = replay(recorded, options.images // RECORDINGS, options.seed + number)
        print(f"daemon{', killed with -9 half way' if number % 2 else ''}: {verdict}", flush=True)
        for line in [*verdict.corrupt, *verdict.lost]:
            print(f"  {line}")
        bad += len(verdict.corrupt) + len(verdict.lost)
        total += verdict.images
    print(f"{total} power-cut images of the daemon, {bad} bad, in {time.monotonic() - begin:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
