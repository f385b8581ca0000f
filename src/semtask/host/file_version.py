"""Whether a file is still the one that was read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class FileVersion(NamedTuple):
    """Tells a file from any other one that is or was in its place."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def version_of(path: Path, *, follow_symlinks: bool = True) -> FileVersion | None:
    """None if there is no such file, or if it cannot be seen."""
    try:
        found = os.stat(path, follow_symlinks=follow_symlinks)
    except OSError:
        return None
    return FileVersion(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
