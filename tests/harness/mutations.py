"""Faults of the kind that a harness must catch, to be put into a test build. A harness that misses one is broken.

The names stand in the file `mutations` of the plan's folder. Standard library only, as launchers import it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

MUTATIONS: dict[str, tuple[str, Callable[[], None]]] = {}


def install(process: str, folder: str) -> None:
    path = Path(folder) / "mutations"
    for name in path.read_text().split() if path.exists() else ():
        where, change = MUTATIONS[name]
        if where == process:
            change()


def _mutation(process: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(change: Callable[[], None]) -> Callable[[], None]:
        MUTATIONS[change.__name__] = process, change
        return change

    return add
