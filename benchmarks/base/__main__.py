"""This tree beside another commit, by turns in one run: python -m benchmarks.base COMMIT [--rounds 5] [--only PARTS]

The other commit gets a worktree and an environment of its own in a temporary folder. Prints the medians of both
sides and their ratio; only the ratio means something on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.base.measure import PARTS, ROOT

Figures = dict[str, list[float]]


@contextmanager
def checked_out(commit: str) -> Iterator[str]:
    """The interpreter of an environment with semtask as it is in this commit."""
    with tempfile.TemporaryDirectory(prefix="semtask-base-") as folder:
        tree, python = f"{folder}/tree", f"{folder}/venv/bin/python"
        _run("git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", tree, commit)
        try:
            _run(sys.executable, "-m", "venv", f"{folder}/venv")
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _run(*pip, "--constraint", str(ROOT / "constraints.txt"), "--editable", tree)
            yield python
        finally:
            _run("git", "-C", str(ROOT), "worktree", "remove", "--force", tree)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def measured(python: str, part: str) -> dict[str, float]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SEMANTICA_AUTOSTART": "off"}
    command = [python, "-m", "benchmarks.base.measure", part]
    output = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def compare(sides: dict[str, str], parts: list[str], rounds: int) -> dict[str, Figures]:
    """The figures of each side, by name; `sides` are interpreters. The sides take turns in going first."""
    found: dict[str, Figures] = {side: {} for side in sides}
    for number in range(rounds):
        for part in parts:
            for side in sorted(sides, reverse=bool(number % 2)):
                for name, value in measured(sides[side], part).items():
                    found[side].setdefault(name, []).append(value)
            print(f"  round {number + 1} of {rounds}: {part}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas (default: all)")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"there is no part {' or '.join(unknown)}; there are {', '.join(PARTS)}")
    with checked_out(options.commit) as python:
        found = compare({"base": python, "now": sys.executable}, parts, options.rounds)
    print(f"{'':44} {'base':>12} {'now':>12}   now/base, medians of {options.rounds}")
    for name, before in found["base"].items():
        old, new = statistics.median(before), statistics.median(found["now"][name])
        print(f"{name:44} {old:12,.1f} {new:12,.1f}   {new / old:.2f}")


if __name__ == "__main__":
    main()
