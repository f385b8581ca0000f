"""The long versions of all that attacks semtask, one after the other, and a table of their figures.

`python -m tests.chaos`. Exit code 1: something did not hold. A part that fails does not keep the others from running.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.figures import FILE, table

PYTEST = ("pytest", "-s", "--timeout=3600")
PARTS: dict[str, tuple[str, ...]] = {
    "kill -9": (*PYTEST, "-m", "chaos", "--chaos-kills=500", "--kill-points=all", "tests/chaos"),
    "floods": (*PYTEST, "-m", "chaos", "--flood-connections=10000", "tests/security/test_flood.py"),
    "fuzzing": (*PYTEST, "--hypothesis-profile=long", "tests/fuzz"),
    "power cuts": ("tests.powercut",),
}


def main() -> int:
    failed = []
    with tempfile.TemporaryDirectory(prefix="semtask-chaos-") as folder:
        figures = Path(folder) / "figures"
        figures.touch()
        for part, module in PARTS.items():
            print(f"\n=== {part}: python -m {' '.join(module)}", flush=True)
            began = time.monotonic()
            done = subprocess.run([sys.executable, "-m", *module], env={**os.environ, FILE: str(figures)}, check=False)
            print(f"=== {part}: {time.monotonic() - began:.0f} s, exit code {done.returncode}", flush=True)
            if done.returncode:
                failed.append(part)
        print(f"\n{table(figures)}\n")
    print(f"did not hold, see above: {', '.join(failed)}" if failed else "all of it held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
