"""The folder of one attempt: the facts that outlive the daemon, the launcher and the shim.

Standard library only: daemon, launcher and shims all use it.

    lock     made by the daemon, held by the shim (flock) from before `started` until it ends
    poison   the claim was given up: a shim that comes late must not start the command
    started  the command may have been started; who shim and command are
    stop     what the daemon asks of the shim
    record   how the command ended; counts only when it is whole
    tmp      a folder for temporary files of a sandboxed command

Nothing here is synced: after a power cut the finish that was committed is the truth, or nothing is.
"""

from __future__ import annotations

import binascii
import errno
import fcntl
import itertools
import os
from _thread import allocate_lock  # threading would be a part of every shim
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol

from semtask.host.procfs import Mark

LOCK = "lock"
POISON = "poison"
STARTED = "started"
STOP = "stop"
RECORD = "record"
PRIVATE = "tmp"

_OURS = 0o600
_removing = allocate_lock()  # of two threads that remove one folder, the second one must find nothing


class Stop(NamedTuple):
    """What the daemon asks: end the command, `grace_ms` between SIGTERM and SIGKILL."""

    reason: str
    grace_ms: int


class Started(NamedTuple):
    """Who the processes are; None as far as it was not written yet."""

    shim: Mark | None
    command: Mark | None


class Record(NamedTuple):
    """How the command ended.

    `wait_status` (as of os.waitpid) is None if it was never started. `stop` says why the shim had begun to stop it
    before it ended: DAEMON_DIED, a reason of the daemon's, or nothing. `swept` processes that it left were killed.
    `spawn_errno` and `spawn_error` say why it could not be started. `max_rss_kib` is the most memory it had, 0 if that
    is not known. `sandbox` is the level that it ran in, if any. Times are epoch ms.
    """

    wait_status: int | None
    stop: str
    started_ms: int
    ended_ms: int
    swept: int
    spawn_errno: int
    spawn_error: str
    max_rss_kib: int = 0
    sandbox: str = ""


DAEMON_DIED = "daemon_died"


def encode_record(record: Record) -> bytes:
    """A line for each field, and a checksum over them."""
    status = "" if record.wait_status is None else record.wait_status
    body = (
        f"wait_status {status}\nstop {record.stop}\nstarted_ms {record.started_ms}\nended_ms {record.ended_ms}\n"
        f"swept {record.swept}\nspawn_errno {record.spawn_errno}\nspawn_error {record.spawn_error}\n"
        f"max_rss_kib {record.max_rss_kib}\nsandbox {record.sandbox}\n"
    ).encode("utf-8", "replace")
    return body + b"crc32 %08x\n" % binascii.crc32(body)


def decode_record(data: bytes) -> Record | None:
    """None unless the record is whole, and of a version that says what this one needs."""
    body, mark, checksum = data.rpartition(b"crc32 ")
    if not mark or checksum != f"{binascii.crc32(body):08x}\n".encode():
        return None
    try:
        return _read_record(dict(line.partition(" ")[::2] for line in body.decode().splitlines()))
    except (KeyError, ValueError):
        return None


def _read_record(values: dict[str, str]) -> Record:
    return Record(
        wait_status=int(values["wait_status"]) if values["wait_status"] else None,
        stop=values["stop"],
        started_ms=int(values["started_ms"]),
        ended_ms=int(values["ended_ms"]),
        swept=int(values["swept"]),
        spawn_errno=int(values["spawn_errno"]),
        spawn_error=values["spawn_error"],
        max_rss_kib=int(values.get("max_rss_kib", 0)),  # a shim of a former version does not say
        sandbox=values.get("sandbox", ""),
    )


def decode_stop(data: bytes) -> Stop | None:
    """None unless it is whole."""
    reason, _, grace = data.decode("ascii", "replace").partition(" ")
    return Stop(reason, int(grace)) if grace.endswith("\n") and grace.strip().isdigit() else None


def decode_started(data: bytes) -> Started:
    """As much as was written; the shim comes first, the command when there is one."""
    marks: dict[str, Mark | None] = {}
    for line in data.decode("ascii", "replace").splitlines(keepends=True):
        if line.endswith("\n"):  # a torn last line says nothing
            who, _, text = line.partition(" ")
            marks[who] = Mark.parse(text)
    return Started(marks.get("shim"), marks.get("command"))


def read_at(folder: int | None, name: str) -> bytes | None:
    """The content of a small file in the folder that `folder` (a descriptor) is; None if it is not there.

    Without a folder `name` is a path.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def exists_at(folder: int, name: str) -> bool:
    return os.access(name, os.F_OK, dir_fd=folder)


def replace_at(folder: int, name: str, data: bytes) -> None:
    """Write a file so that it is seen complete or missing, never in part."""
    temporary = name + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _OURS, dir_fd=folder)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, "short write")
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


class Spares(Protocol):
    """Folders of former attempts that can be used again."""

    def take(self, path: str) -> bool:
        """Put one to `path`; False if there is none. FileExistsError if something is there."""
        ...

    def keep(self, path: str) -> bool:
        """Take the folder of an attempt over; False if it must be removed."""
        ...


class AttemptFolder:
    """`attempts/<job_id>.<claim_no>`, seen from the daemon."""

    def __init__(self, path: str, trash: str, spares: Spares | None = None) -> None:
        self.path = path
        self._trash = trash
        self._spares = spares

    def create(self) -> None:
        """Make the folder and its lock. FileExistsError if it is there: a claim number is never used twice."""
        if self._spares is not None and self._spares.take(self.path):
            return
        try:
            os.mkdir(self.path, 0o700)
        except FileNotFoundError:  # somebody removed the folder of all attempts; the home must be there
            for folder in (os.path.dirname(self.path), self._trash, self.path):
                with suppress(FileExistsError):
                    os.mkdir(folder, 0o700)
        os.close(os.open(self._file(LOCK), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _OURS))

    def open(self) -> int:
        """A descriptor of the folder; it stays good when the folder is moved."""
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def private(self) -> str:
        """Where a folder for the command's own files is to be made; it goes with this one."""
        return self._file(PRIVATE)

    def exists(self) -> bool:
        return os.path.isdir(self.path)

    def started(self) -> Started | None:
        """None if the shim never came that far; then the command was not started."""
        data = self._read(STARTED)
        return None if data is None else decode_started(data)

    def record(self) -> Record | None:
        """None if there is no whole record."""
        data = self._read(RECORD)
        return None if data is None else decode_record(data)

    def poisoned(self) -> bool:
        """Whether the claim was given up, so that no shim starts anything here."""
        return os.path.exists(self._file(POISON))

    def ask_to_stop(self, stop: Stop) -> None:
        """Write what the shim reads at its next SIGTERM. Raises OSError, FileNotFoundError without a folder."""
        folder = self.open()
        try:
            replace_at(folder, STOP, f"{stop.reason} {stop.grace_ms}\n".encode())
        finally:
            os.close(folder)

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Try to take the lock and keep it inside the block. False: a shim holds it.

        Without a lock file nobody can ever hold it, nor start anything: that counts as taken.
        """
        try:
            fd = os.open(self._file(LOCK), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def poison(self) -> None:
        """Give the claim up: nothing can be started here any more. Only while `locked()`."""
        try:
            os.close(os.open(self._file(POISON), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _OURS))
        except FileNotFoundError:  # no folder, hence nothing to start in it
            return
        except OSError:
            # A disk without room for a file: a shim without a lock file does not start either.
            unlink(self._file(LOCK))

    def remove(self) -> None:
        """Remove the folder; only after the end of the attempt was committed.

        A poisoned one goes to the trash whole: a late shim must find it poisoned until its launcher is gone.
        """
        with _removing:
            if self.poisoned():
                self._throw_away()
            elif self._spares is None or not self._spares.keep(self.path):
                remove_folder(self.path)

    def remove_unlocked(self) -> bool:
        """The same for a folder that may be held, or be removed by another thread. False: a shim holds it.

        It is not used again: its lock is ours while it goes.
        """
        with _removing, self.locked() as free:
            if free and self.poisoned():
                self._throw_away()
            elif free:
                remove_folder(self.path)
            return free

    def _throw_away(self) -> None:
        os.rename(self.path, os.path.join(self._trash, os.path.basename(self.path)))

    def _file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _read(self, name: str) -> bytes | None:
        return read_at(None, self._file(name))


def remove_folder(path: str) -> None:
    """`lock` goes first and `poison` last: whoever opened the lock before sees the poison, or a lock without a name."""
    unlink(f"{path}/{LOCK}")
    for name in (RECORD, STARTED):  # there in nearly every folder
        unlink(f"{path}/{name}")
    try:
        os.rmdir(path)
        return
    except FileNotFoundError:
        return
    except OSError:
        names = os.listdir(path)
    for name in sorted(names, key=lambda name: name == POISON):
        if os.path.isdir(f"{path}/{name}"):
            _remove_tree(f"{path}/{name}")
        else:
            unlink(f"{path}/{name}")
    os.rmdir(path)


def _remove_tree(path: str) -> None:
    """However deep its folders are nested, and whatever their modes: each of them is moved up before it is emptied."""
    numbers = itertools.count()
    pending = [path]
    while pending:
        folder = pending.pop()
        os.chmod(folder, 0o700)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)  # or it could not be moved
                    pending.append(f"{path}.{next(numbers)}")
                    os.rename(entry.path, pending[-1])
                else:
                    os.unlink(entry.path)
        os.rmdir(folder)


def unlink(path: str) -> bool:
    """Whether it was there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
