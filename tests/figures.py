"""The figures of `make chaos`: the harnesses write them to one file as they come, and a table tells them in the end."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

FILE = "CHAOS_FIGURES"  # the name of the variable with the path of the file; without it nothing is written


def tell(what: str, *, asked: int | str, got: int | str) -> None:
    """One line of the table. Numbers that are told several times under one name are added."""
    path = os.environ.get(FILE)
    if path:
        with open(path, "a") as file:
            file.write(json.dumps([what, asked, got]) + "\n")


def table(path: Path) -> str:
    rows: dict[str, tuple[int | str, int | str]] = {}
    for line in path.read_text().splitlines():
        what, asked, got = json.loads(line)
        before = rows.get(what, (0, 0))
        rows[what] = _sum(before[0], asked), _sum(before[1], got)
    return _table({"what": ("asked", "got"), **rows})


def _sum(before: int | str, now: int | str) -> int | str:
    return before + now if isinstance(before, int) and isinstance(now, int) else now


def _table(rows: Mapping[str, tuple[int | str, int | str]]) -> str:
    first = max(map(len, rows))
    second = max(len(_shown(asked)) for asked, _ in rows.values())
    return "\n".join(f"{what:{first}}  {_shown(asked):{second}}  {_shown(got)}" for what, (asked, got) in rows.items())


def _shown(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value
