"""`python -m tests.harness.killed PLACE STEPS WORD...`: `semtask WORD...`, killed with -9 at each of some steps.

A step is something that it asks of the file system itself or through SQLite. For each number of STEPS (with commas) a
process works in the folder PLACE/<number>, a copy of PLACE/before, and is killed at that step, before it is done. `{}`
in a word stands for that folder. Without STEPS nobody is killed, and the number of steps and the exit code are printed.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from semtask.cli.main import main as program
from tests.powercut.vfs import hook_for_good

# Imported once, and not by each process anew.
_NEEDED = ("semtask.maintenance", "semtask.executors.abandon", "semtask.cli.upkeep")
_CALLS = ("open", "link", "rename", "replace", "unlink", "fsync", "mkdir", "rmdir")


class Steps:
    """Counts; an observer of SQLite, too."""

    def __init__(self, last: int | None) -> None:
        self.count = 0
        self._last = last

    def take(self) -> None:
        self.count += 1
        if self.count == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()

    def watch(self) -> None:
        hook_for_good(self)
        for name in _CALLS:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.take()
            return function(*args, **kwargs)

        return call

    def opened(self, path: str) -> int:
        self.take()
        return 0

    def write(self, path: str, data: bytes, offset: int, do: Callable[[], int]) -> int:
        self.take()
        return do()

    def truncate(self, path: str, size: int, do: Callable[[], int]) -> int:
        self.take()
        return do()

    def sync(self, path: str, do: Callable[[], int]) -> int:
        self.take()
        return do()

    def delete(self, path: str, do: Callable[[], int]) -> int:
        self.take()
        return do()


def work(folder: Path, words: Sequence[str], last: int | None, told: int) -> None:
    """In a process of its own; never returns."""
    os.environ["SEMANTICA_HOME"] = str(folder / "home")
    os.environ["HOME"] = str(folder)
    sys.argv = ["semtask", *(word.replace("{}", str(folder)) for word in words)]
    steps = Steps(last)
    steps.watch()
    code: int | str | None = 0
    try:
        program()
    except SystemExit as end:
        code = end.code
    os.write(told, f"{steps.count} {code or 0}".encode())
    os._exit(0)


def main(place: Path, numbers: Sequence[int], words: Sequence[str]) -> None:
    for name in _NEEDED:
        importlib.import_module(name)
    for number in numbers or [0]:
        folder = place / str(number)
        shutil.copytree(place / "before", folder, symlinks=True)
        heard, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            work(folder, words, number or None, told)
        os.close(told)
        _, status = os.waitpid(pid, 0)
        answer = os.read(heard, 100).decode()
        os.close(heard)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed == bool(number), f"step {number}: status {status}, {answer}"
        print(answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2].split(",") if number], sys.argv[3:])
