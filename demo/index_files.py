"""The program that the demo's jobs run: read some source files, write one shard of the index.

usage: index_files.py JOB_NAME WORK_DIR LIST_FILE

It knows nothing of semtask. It takes a lock of its own and writes a history of its own, so that the demo can prove,
without trusting the engine's database, that no job ran twice at once.
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import sys
from pathlib import Path

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{2,}")


def main(name: str, work: Path, files: list[str]) -> int:
    lock = os.open(work / "locks" / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(work, f"overlap {name}")
        return 1
    note(work, f"start {name}")
    shard = [entry for path in files if (entry := index_file(Path(path)))]
    target = work / "shards" / f"{name}.json"
    temporary = target.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(shard))
    temporary.rename(target)
    note(work, f"end {name}")
    print(f"{len(shard)} of {len(files)} files indexed")
    return 0


def index_file(path: Path) -> dict[str, object] | None:
    """Words, and names of the classes and functions of Python files. None for what is no text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return None
    words: dict[str, list[int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for word in set(WORD.findall(line)):
            words.setdefault(word.lower(), []).append(number)
    return {"path": str(path), "lines": text.count("\n"), "words": words, "symbols": symbols(path, text)}


def symbols(path: Path, text: str) -> list[tuple[str, int]]:
    if path.suffix != ".py":
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # test data of the standard library is wrong on purpose
        return []
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [(node.name, node.lineno) for node in ast.walk(tree) if isinstance(node, kinds)]


def note(work: Path, line: str) -> None:
    """One short append is atomic, so that the histories of all jobs fit into one file."""
    history = os.open(work / "history", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(history, f"{line}\n".encode())
    os.close(history)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).read_text().splitlines()))
