"""The tasks of the demo: `semtask up --app demo.app:app` runs them."""

from __future__ import annotations

import ast
import ctypes
import json
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from demo.witness import witnessed, write_whole
from semtask import Retry, Semantica, current_job

app = Semantica()


@dataclass
class Parsed:
    files: int
    symbols: int
    not_python: int


@dataclass
class Index:
    path: Path
    files: int
    words: int
    symbols: int


@app.task(queue="parse")
def parse(name: str, work: Path, files: list[Path]) -> Parsed:
    """Collect the classes and functions of some Python files."""
    shard: dict[str, list[tuple[str, int]]] = {}
    bad = 0
    with witnessed(work, name):
        for number, path in enumerate(files, 1):
            try:
                shard[str(path)] = symbols_of(path)
            except (SyntaxError, ValueError) as error:  # test data of the standard library is wrong on purpose
                print(f"{path}: {error}")
                bad += 1
            current_job().progress(number, len(files))
        write_whole(work / "symbols" / f"{name}.json", json.dumps(shard))
    return Parsed(len(shard), sum(map(len, shard.values())), bad)


def symbols_of(path: Path) -> list[tuple[str, int]]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [(node.name, node.lineno) for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, kinds)]


@app.task(queue="parse")
def segfault(work: Path) -> None:
    """A bug in C code, on purpose: it reads from address 0."""
    with witnessed(work, "segfault"):
        ctypes.string_at(0)


@app.task(queue="parse", retry=Retry(3, base=0.3))
def flaky(work: Path) -> int:
    """Fails twice, as the network does."""
    attempt = current_job().attempt
    with witnessed(work, f"flaky-{attempt}"):
        if attempt < 3:
            raise ConnectionResetError(f"attempt {attempt} of 3 fails on purpose")
    return attempt


@app.task
def join(work: Path, source: Path) -> Index:
    """Join the shards of all jobs to one index, a SQLite database."""
    index = work / "index.db"
    index.unlink(missing_ok=True)
    db = sqlite3.connect(index)
    db.execute("create table words(word text, path text, count int, first_line int)")
    db.execute("create table symbols(name text, path text, line int)")
    shards = sorted((work / "words").glob("*.json"))
    files = 0
    for number, shard in enumerate(shards, 1):
        for path, words in json.loads(shard.read_text()).items():
            files += 1
            place = os.path.relpath(path, source)
            rows = [(word, place, len(lines), lines[0]) for word, lines in words.items()]
            db.executemany("insert into words values (?, ?, ?, ?)", rows)
        current_job().progress(number, len(shards), "words")
    for shard in sorted((work / "symbols").glob("*.json")):
        for path, symbols in json.loads(shard.read_text()).items():
            place = os.path.relpath(path, source)
            db.executemany("insert into symbols values (?, ?, ?)", [(name, place, line) for name, line in symbols])
    db.execute("create index by_word on words(word)")
    db.execute("create index by_name on symbols(name)")
    db.commit()
    counts = db.execute("select (select count(distinct word) from words), (select count(*) from symbols)").fetchone()
    db.close()
    return Index(index, files, *counts)
