"""Who works on a home and its database: one process at a time, a daemon or `semtask db`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from semtask.config.settings import Settings
from semtask.errors import EXIT_OTHER_DAEMON, StartupError
from semtask.host.filesystem import make_private, require_local
from semtask.host.locks import FolderBusy, FolderLocks


@contextmanager
def owned_folders(settings: Settings) -> Iterator[None]:
    """Own the home and the folder of its database while the block runs; they are made if need be.

    Raises StartupError if they are not safe to use, with the exit code EXIT_OTHER_DAEMON if another process owns them.
    """
    locks = FolderLocks()
    try:
        for folder in (settings.home, settings.database.parent):
            make_private(folder)
            require_local(folder)
            try:
                locks.take(folder)
            except FolderBusy as busy:
                what = "home" if folder == settings.home else "database folder"
                who = f"the semtask daemon with pid {busy.pid}" if busy.pid else "another semtask daemon"
                raise StartupError(
                    f"{who} already owns the {what} {folder}; stop it with `semtask down`, or choose another one",
                    exit_code=EXIT_OTHER_DAEMON,
                ) from None
        yield
    finally:
        locks.release()
