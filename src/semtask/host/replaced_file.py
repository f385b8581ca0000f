"""Small files of the home that are changed as a whole, by one process at a time, and are whole after a crash."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semtask.errors import ConfigError
from semtask.host.filesystem import make_private


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file that is at `path` now: a writer puts a new file in its place.

    The file and its folder are made if need be; an empty one is a file that was never written. Raises ConfigError.
    """
    make_private(path.parent)
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_at(path, fd):
                yield
                return
        finally:
            os.close(fd)


def replace(path: Path, text: str) -> None:
    """Put a file with this text, mode 0600, in the place of the one that is locked. Raises ConfigError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
