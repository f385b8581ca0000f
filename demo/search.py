"""Search the index that the demo built.

usage: search.py INDEX WORD
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

SHOWN = 15


def main(index: str, word: str) -> int:
    if not Path(index).is_file():
        print(f"search: there is no index {index}; build one with: make demo", file=sys.stderr)
        return 2
    db = sqlite3.connect(f"file:{index}?mode=ro", uri=True)
    defined = db.execute("select path, line from symbols where name = ? order by path", (word,)).fetchall()
    used = db.execute(
        "select path, count, first_line from words where word = ? order by count desc, path", (word.lower(),)
    ).fetchall()
    db.close()
    for path, line in defined[:SHOWN]:
        print(f"defined  {path}:{line}")
    for path, count, line in used[:SHOWN]:
        print(f"{count:7}  {path}:{line}")
    print(f"{word}: defined in {len(defined)} places, used in {len(used)} files")
    return 0 if used or defined else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit((__doc__ or "").strip())
    sys.exit(main(sys.argv[1], sys.argv[2]))
