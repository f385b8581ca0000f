"""Noticing that the code of an app has changed, by looking at its files. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterator

MAX_FILES = 5000
_NEVER = frozenset({"node_modules", "__pycache__", "site-packages", "venv"})
_Stamp = tuple[int, int]


class Watch:
    """The `*.py` files of a folder and those below it; without virtualenvs and hidden folders, MAX_FILES at most."""

    def __init__(self, folder: str, *, max_files: int = MAX_FILES) -> None:
        self._folder = folder
        self.max_files = max_files
        self._stamps = self._look()

    @property
    def full(self) -> bool:
        """Whether there are more files than are watched."""
        return len(self._stamps) >= self.max_files

    def changed(self) -> list[str]:
        """The files that were written, made or deleted since the last call; relative to the folder."""
        before, self._stamps = self._stamps, self._look()
        changed = {path for path, _ in before.items() ^ self._stamps.items()}
        return sorted(os.path.relpath(path, self._folder) for path in changed)

    def _look(self) -> dict[str, _Stamp]:
        stamps: dict[str, _Stamp] = {}
        for entry in self._files():
            try:
                found = entry.stat()
            except FileNotFoundError:  # deleted while we look
                continue
            stamps[entry.path] = (found.st_mtime_ns, found.st_size)
            if len(stamps) >= self.max_files:
                break
        return stamps

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """The files of upper folders first."""
        folders = [self._folder]
        for folder in folders:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:  # deleted while we look, or closed to us: not importable either
                continue
            for entry in entries:
                if entry.name.endswith(".py") and entry.is_file():
                    yield entry
                elif entry.is_dir(follow_symlinks=False) and _is_code(entry):
                    folders.append(entry.path)


def _is_code(folder: os.DirEntry[str]) -> bool:
    hidden = folder.name.startswith(".") or folder.name in _NEVER
    return not hidden and not os.path.exists(os.path.join(folder.path, "pyvenv.cfg"))
