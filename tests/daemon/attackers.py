"""The tasks of test_task_attacks.py."""

from __future__ import annotations

import time
from pathlib import Path

from semtask import Semantica

app = Semantica()


def _await_go(folder: str, name: str) -> None:
    Path(folder, f"{name}.began").touch()
    while not Path(folder, f"{name}.go").exists():
        time.sleep(0.01)


@app.task(concurrency=1)
def only_one(folder: str, name: str) -> None:
    _await_go(folder, name)


@app.task
def any_number(folder: str, name: str) -> None:
    _await_go(folder, name)


@app.task
def append(path: str) -> None:
    """The file has a byte for each time that this has begun."""
    with Path(path).open("ab") as file:
        file.write(b"x")
    time.sleep(0.002)


@app.task(concurrency=1)
def descend(depth: int) -> int:
    return 0 if depth == 0 else 1 + descend.enqueue(depth - 1).result(timeout=60)
