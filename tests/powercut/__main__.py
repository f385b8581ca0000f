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
from tests.figures import tell
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
    corrupt: list[str] = []
    lost: list[str] = []
    images = 0
    for number, (name, (kill, ills)) in enumerate(RECORDINGS.items()):
        with tempfile.TemporaryDirectory(prefix="semtask-powercut-") as folder:
            recorded = record(Path(folder) / "home", SECONDS, kill=kill, ills=ills)
            verdict = replay(recorded, share, options.seed + number)
        print(f"{name}: {verdict}", flush=True)
        _show([*verdict.corrupt, *verdict.lost])
        corrupt += verdict.corrupt
        lost += verdict.lost
        images += verdict.images
    with tempfile.TemporaryDirectory(prefix="semtask-powercut-") as folder:
        old, new, halves = migration(Path(folder), share, options.seed)
    print(
        f"migration: {share} images, {old} with the old schema, {new} with the new one, {len(halves)} bad", flush=True
    )
    _show(halves)
    with tempfile.TemporaryDirectory(prefix="semtask-powercut-") as folder:
        wrong = cleaning(Path(folder), share, options.seed)
    print(f"deleting history and shrinking the file: {share} images, {len(wrong)} bad", flush=True)
    _show(wrong)
    bad = len(corrupt) + len(lost) + len(halves) + len(wrong)
    print(f"{images + 2 * share} power-cut images, {bad} bad, in {time.monotonic() - begin:.0f} s")
    tell("power-cut images of a daemon, replayed", asked=options.images, got=images)
    tell("  with something lost that was acknowledged under fsync", asked=0, got=len(lost))
    tell("  corrupt", asked=0, got=len(corrupt))
    tell("power-cut images of a migration, old schema or new one", asked=share, got=old + new)
    tell("  corrupt, or without a whole backup", asked=0, got=len(halves))
    tell("power-cut images of deleting history and vacuum", asked=share, got=share)
    tell("  corrupt, or with something lost", asked=0, got=len(wrong))
    return 1 if bad else 0


def _show(wrong: Sequence[str]) -> None:
    for line in wrong:
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
