"""The files that jobs keep: `<artifacts_dir>/<job_id>/<name>`, whole or not there."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, NamedTuple

from semtask.protocol.frames import ArtifactInfo

RESULT = "result.json"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")  # no leading dot: those are files being written
_CHUNK = 1 << 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ArtifactLimits(NamedTuple):
    """Bytes of one artifact, bytes of all artifacts of a job, and how many it may have: the settings of these names."""

    max_artifact_bytes: int = 1 << 30
    max_job_artifact_bytes: int = 4 << 30
    max_job_artifacts: int = 1000


def is_kept(info: ArtifactInfo, job_id: str) -> bool:
    """Whether it names a file in the folder of the job, as `ArtifactFolder` does: a worker can say anything."""
    return _NAME.fullmatch(info.name) is not None and info.path == f"{job_id}/{info.name}"


class ArtifactFolder:
    """The artifacts of a job. The folder is made with the first one."""

    def __init__(self, artifacts_dir: str, job_id: str, limits: ArtifactLimits = ArtifactLimits()) -> None:  # noqa: B008 - a constant
        self._parent = artifacts_dir
        self._limits = limits
        self._job_id = job_id
        self._path = f"{artifacts_dir}/{job_id}"

    def keep(self, name: str, data: bytes | str | os.PathLike[str]) -> ArtifactInfo:
        """Raises ValueError for a bad name, what is no regular file, or is over a limit; OSError for what cannot be
        read or written.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot name an artifact: 1 to 128 letters, digits, dots, dashes and underscores,"
                " no dot in front, no folders"
            )
        if name == RESULT:
            raise ValueError(f"{RESULT!r} is the name of the job's result; take another one for an artifact")
        return self._keep(name, data, self._room(name), is_result=False)

    def keep_result(self, result: bytes) -> ArtifactInfo:
        return self._keep(RESULT, result, _Room(len(result), ""), is_result=True)

    def _room(self, name: str) -> _Room:
        """What this artifact may take, beside those that are kept already, also by former attempts and by children."""
        limits = self._limits
        try:
            others = [entry.stat().st_size for entry in os.scandir(self._path) if entry.name not in {name, RESULT}]
        except FileNotFoundError:
            others = []
        if len(others) >= limits.max_job_artifacts:
            raise ValueError(
                f"artifact {name!r} would be one more than the {limits.max_job_artifacts:,} that a job may keep"
                " (max_job_artifacts): pack several files into one, or raise this setting"
            )
        left = limits.max_job_artifact_bytes - sum(others)
        if left < limits.max_artifact_bytes:
            return _Room(
                max(left, 0),
                f"artifact {name!r} would bring those of this job above {limits.max_job_artifact_bytes:,} bytes"
                " (max_job_artifact_bytes): keep less, or raise this setting",
            )
        return _Room(
            limits.max_artifact_bytes,
            f"artifact {name!r} has more than {limits.max_artifact_bytes:,} bytes (max_artifact_bytes):"
            " keep less, or raise this setting",
        )

    def _keep(self, name: str, data: bytes | str | os.PathLike[str], room: _Room, *, is_result: bool) -> ArtifactInfo:
        try:
            return self._copy(name, data, room, is_result)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            text = f"{error.strerror}: there is no room for artifact {name!r} on the disk of {self._parent}"
            raise OSError(error.errno, f"{text}; make room there, or keep less") from error

    def _copy(self, name: str, data: bytes | str | os.PathLike[str], room: _Room, is_result: bool) -> ArtifactInfo:
        import hashlib

        digest = hashlib.sha256()
        size = 0
        with _opened(data) as (chunks, expected):
            room.require(expected)
            self._make()
            _require_space(self._path, expected)
            with self._replacing(name) as file:
                for chunk in chunks:
                    size += len(chunk)
                    room.require(size)
                    file.write(chunk)
                    digest.update(chunk)
        return ArtifactInfo(
            name=name, size=size, sha256=digest.hexdigest(), path=f"{self._job_id}/{name}", is_result=is_result
        )

    def _make(self) -> None:
        try:
            os.mkdir(self._path, 0o700)
        except FileExistsError:
            return
        except FileNotFoundError:
            os.makedirs(self._path, 0o700)
        _sync_folder(self._parent)

    @contextmanager
    def _replacing(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to, which then gets its name on disk in one step."""
        path = f"{self._path}/.{name}.{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(path, flags, 0o600), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.rename(path, f"{self._path}/{name}")
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(path)
            raise
        _sync_folder(self._path)


class _Room(NamedTuple):
    """The bytes that an artifact may have, and what to say if it has more."""

    limit: int
    refusal: str

    def require(self, size: int) -> None:
        if size > self.limit:
            raise ValueError(self.refusal)


def _require_space(folder: str, size: int) -> None:
    """Not to fill the disk first, and find out then. Raises OSError."""
    disk = os.statvfs(folder)
    if size > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _opened(data: bytes | bytearray | memoryview | str | os.PathLike[str]) -> Iterator[tuple[Iterator[bytes], int]]:
    """The bytes of an artifact, and how many they are as far as that is known. Opens its source before all else."""
    if isinstance(data, str):
        content = data.encode()
    elif isinstance(data, bytes | bytearray | memoryview):
        content = bytes(data)
    elif isinstance(data, os.PathLike):
        fd = _open_regular(os.fspath(data))
        try:
            size = os.fstat(fd).st_size
            yield _read(fd, size), size
        finally:
            os.close(fd)
        return
    else:
        raise TypeError(f"an artifact is made of bytes, text or the file at a path, not of {type(data).__name__}")
    yield iter((content,)), len(content)


def _open_regular(path: str) -> int:
    """Links are followed. Looked at before it is opened, as that can change a device or wake who waits at a pipe."""
    _require_regular(os.stat(path), path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_regular(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        text = "is a folder, and an artifact is one file; pack it first, for example with shutil.make_archive"
        raise IsADirectoryError(errno.EISDIR, text, path)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise ValueError(
            f"{path!r} is {kind}, and an artifact is a copy of a regular file; read from it, and keep the bytes"
        )


def _read(fd: int, size: int) -> Iterator[bytes]:
    """A file as long as it was when it was opened, though it grows; one without a size, as in /proc, to its end."""
    left = size or sys.maxsize
    while left > 0 and (chunk := os.read(fd, min(left, _CHUNK))):
        left -= len(chunk)
        yield chunk


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
