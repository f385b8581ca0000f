"""Which backups of a database there are, as far as is known: those beside it, and the last one that was made."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def remember(database: Path, backup: Path) -> None:
    """Note where the last backup is. Raises OSError."""
    draft = _note(database).with_suffix(".new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(os.fsencode(backup.absolute()))
    draft.replace(_note(database))


def newest(database: Path) -> Path | None:
    """The youngest backup that is there. Raises OSError."""
    return max(_found(database), key=lambda found: found[0], default=(0.0, None))[1]


def way_back(database: Path) -> str:
    """What to do about a damaged database, for people."""
    try:
        backup = newest(database)
    except OSError as error:
        return f"whether there is a backup cannot be seen ({error.strerror})"
    if backup is None:
        return "no backup of it is known; `semtask db check` says what is damaged"
    return f"the newest backup is {backup}: `semtask down`, then `semtask db restore {shlex.quote(str(backup))}`"


def _found(database: Path) -> Iterator[tuple[float, Path]]:
    beside = list(database.parent.glob(f"{database.name}.v*.backup"))
    with suppress(FileNotFoundError):
        beside.append(Path(os.fsdecode(_note(database).read_bytes())))
    for path in beside:
        with suppress(FileNotFoundError):
            yield path.stat().st_mtime, path


def _note(database: Path) -> Path:
    return database.with_name(f"{database.name}.last-backup")
