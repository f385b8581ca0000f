"""A program that a job runs, of which semtask knows nothing: collect the words of some source files.

usage: python -m demo.words JOB_NAME WORK_DIR LIST_FILE
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from demo.witness import witnessed, write_whole

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{2,}")


def main(name: str, work: Path, files: list[str]) -> None:
    with witnessed(work, name):
        shard = {path: words for path in files if (words := words_of(Path(path))) is not None}
        write_whole(work / "words" / f"{name}.json", json.dumps(shard))
    print(f"{len(shard)} of {len(files)} files indexed")


def words_of(path: Path) -> dict[str, list[int]] | None:
    """Each word with the lines that have it. None for what is no text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return None
    words: dict[str, list[int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for word in set(WORD.findall(line)):
            words.setdefault(word.lower(), []).append(number)
    return words


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).read_text().splitlines())
