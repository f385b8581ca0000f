"""The SQL of the stores: one statement per file, all read from the package together.

A daemon that read one later could find that of another release, put in the place of its own by an upgrade.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from semtask.store.codes import encode


def folder(dialect: str, kind: str) -> Traversable:
    """`kind` is queries or migrations."""
    return files("semtask.store").joinpath("sql", dialect, kind)


def query(name: str, dialect: str = "sqlite") -> str:
    """The statement in queries/<name>.sql, without its comments and with the codes of the words that it names."""
    return _queries(dialect)[name]


@cache
def _queries(dialect: str) -> dict[str, str]:
    found = (file for file in folder(dialect, "queries").iterdir() if file.name.endswith(".sql"))
    return {file.name.removesuffix(".sql"): _statement(file.read_text(encoding="utf-8")) for file in found}


def _statement(text: str) -> str:
    return encode("\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--")))
