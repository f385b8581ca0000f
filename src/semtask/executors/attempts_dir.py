"""The folder of all attempts: their folders, those that are kept to be used again, and those that are thrown away."""

from __future__ import annotations

import errno
import itertools
import os
from collections import deque
from contextlib import suppress

from semtask.launch.folder import LOCK, RECORD, STARTED, AttemptFolder, remove_folder, replace_at, unlink

_TRASH = ".trash"
_SPARE = ".spare"
_ID = ".id"
_MAX_SPARES = 64


class _Spares:
    """Empty folders with their locks, for later attempts. Making and removing them costs more than running /bin/true.

    Methods may be called from any thread.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._free: deque[str] = deque()
        self._names = itertools.count()
        os.makedirs(path, 0o700, exist_ok=True)
        for name in os.listdir(path):
            remove_folder(os.path.join(path, name))

    def take(self, path: str) -> bool:
        """Move a spare folder to `path`; False if there is none."""
        try:
            spare = self._free.pop()
        except IndexError:
            return False
        if os.path.exists(path):
            self._free.append(spare)
            raise FileExistsError(errno.EEXIST, "the folder of this claim is there already", path)
        try:
            os.rename(spare, path)
        except FileNotFoundError:  # somebody removed it, and the others too
            self._free.clear()
            return False
        return True

    def keep(self, path: str) -> bool:
        """Empty a folder and make it a spare; False if it must not be: without a record its shim may still come."""
        if len(self._free) >= _MAX_SPARES or not unlink(f"{path}/{RECORD}"):
            return False
        unlink(f"{path}/{STARTED}")
        if os.listdir(path) != [LOCK]:
            return False
        spare = f"{self._path}/{next(self._names)}"
        try:
            os.rename(path, spare)
        except FileNotFoundError:
            return False
        self._free.append(spare)
        return True


class AttemptsDir:
    """The folder of all attempts. Its random id tells it apart from a copy or a new folder in the same place."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._trash = os.path.join(self.path, _TRASH)
        os.makedirs(self.path, 0o700, exist_ok=True)
        os.chmod(self.path, 0o700)
        os.makedirs(self._trash, 0o700, exist_ok=True)
        self._spares = _Spares(os.path.join(self.path, _SPARE))
        self.attempts_id, self._copied_from = self._load_id()

    def attempt(self, job_id: str, claim_no: int) -> AttemptFolder:
        return AttemptFolder(os.path.join(self.path, f"{job_id}.{claim_no}"), self._trash, self._spares)

    def is_foreign(self, attempts_id: str) -> bool:
        """Whether a claim with this id is known from a copy alone: what it names belongs to the original."""
        return attempts_id in {"", self._copied_from}

    def scratch(self) -> str:
        """The path of a folder that does not exist; whatever is left of it is removed with the trash."""
        return os.path.join(self._trash, os.urandom(8).hex())

    def empty_trash(self) -> None:
        """Remove what was poisoned. Only when no launcher is left that could still start it."""
        with suppress(FileNotFoundError):
            for name in os.listdir(self._trash):
                remove_folder(os.path.join(self._trash, name))

    def forget_id(self) -> None:
        """The next start makes another one: no claim of before is then taken for one whose folder must be here."""
        unlink(os.path.join(self.path, _ID))

    def _load_id(self) -> tuple[str, str]:
        try:
            with open(os.path.join(self.path, _ID), encoding="ascii") as file:
                known, place, copied_from, *_ = [*file.read().split("\n"), "", ""]
        except FileNotFoundError:
            known = place = copied_from = ""
        status = os.stat(self.path)
        here = f"{status.st_dev}:{status.st_ino}"  # a copy has that of the original in its file
        if known and place == here:
            return known, copied_from
        if place:
            self._forget_starts()
            known, copied_from = "", known
        known = known or os.urandom(16).hex()
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            replace_at(folder, _ID, f"{known}\n{here}\n{copied_from}".encode())
        finally:
            os.close(folder)
        return known, copied_from

    def _forget_starts(self) -> None:
        """In a copy: only records say what has become of an attempt; the processes are those of the original."""
        for name in os.listdir(self.path):
            if not name.startswith(".") and not os.path.exists(f"{self.path}/{name}/{RECORD}"):
                remove_folder(os.path.join(self.path, name))
