"""The long form, with its figures: `python -m tests.powercut [--images N] [--seed S]`. Exit code 1: a promise broke."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.disk import FULL, READ_ONLY, SYNC
from tests.powercut.load import record
from tests.powercut.replay import replay
from tests.powercut.upkeep import cleaning, migration

SECONDS = 4.0
RECORDINGS: dict[str, tuple[bool, Sequence[str]]] = {  # whether it is killed half way, and what it suffers from
    "daemon": (False, ()),
    "daemon, killed with -9": (True, ()),
    "daemon on a sick disk": (False, (SYNC, FULL, READ_ONLY, SYNC)),
    "daemon on a sick disk, killed with -9": (True, (READ_ONLY, SYNC)),
}


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.powercut")
    arguments.add_argument("--images", type=int, default=1600, help="of the daemon, over all its recordings")
    arguments.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = arguments.parse_args()
    begin = time.monotonic()
    print(f"power cuts, seed {options.seed}")
    share = options.images // len(RECORDINGS)
    bad = 0
    total = 0
    for number, (name, (kill, ills)) in enumerate(RECORDINGS.items()):
        with tempfile.TemporaryDirectory(prefix="semtask-powercut-") as folder:
            recorded = record(Path(folder) / "home", SECONDS, kill=kill, ills=ills)
            verdict = replay(recorded, share, options.seed + number)
        print(f"{name}: {verdict}", flush=True)
        bad += _tell([*verdict.corrupt, *verdict.lost])
        total += verdict.images
    with tempfile.TemporaryDirectory(prefix="semtask-powercut-") as folder:
        old, new, wrong = migration(Path(folder), share, options.seed)
    print(f"migration: {share} images, {old} with the old schema, {new} with the new one, {len(wrong)} bad", flush=True)
    bad += _tell(wrong)
    with tempfile.TemporaryDirectory(prefix="semtask-powercut-") as folder:
        wrong = cleaning(Path(folder), share, options.seed)
    print(f"deleting history and shrinking the file: {share} images, {len(wrong)} bad", flush=True)
    bad += _tell(wrong)
    print(f"{total + 2 * share} power-cut images, {bad} bad, in {time.monotonic() - begin:.0f} s")
    return 1 if bad else 0


def _tell(wrong: Sequence[str]) -> int:
    for line in wrong:
        print(f"  {line}")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
