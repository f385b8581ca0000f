"""The SQL of the stores: one statement per file, read once from the package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable


def folder(dialect: str, kind: str) -> Traversable:
    """`kind` is queries or migrations."""
    return files("semtask.store").joinpath("sql", dialect, kind)


@cache
def query(name: str, dialect: str = "sqlite") -> str:
    """The statement in queries/<name>.sql, without its comments."""
    text = folder(dialect, "queries").joinpath(f"{name}.sql").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
