"""Whether files are still in their places: somebody may delete, move or replace them while they are in use."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


class Presence:
    """Remembers what the paths lead to now; those that lead to nothing are left out."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._found = {path: found for path in paths if (found := _identity(path)) is not None}

    def lost(self) -> str | None:
        """What has become of the first path that does not lead to the same any more, None if all do.

        Raises OSError where that cannot be told.
        """
        for path, before in self._found.items():
            now = _identity(path)
            if now != before:
                return f"{path} {'is gone' if now is None else 'was replaced'}"
        return None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
