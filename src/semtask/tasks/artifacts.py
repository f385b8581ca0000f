"""The files that jobs keep: `<artifacts_dir>/<job_id>/<name>`, whole or not there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from semtask.protocol.frames import ArtifactInfo

RESULT = "result.json"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")  # no leading dot: those are files being written
_CHUNK = 1 << 20


def is_kept(info: ArtifactInfo, job_id: str) -> bool:
    """Whether it names a file in the folder of the job, as `ArtifactFolder` does: a worker can say anything."""
    return _NAME.fullmatch(info.name) is not None and info.path == f"{job_id}/{info.name}"


class ArtifactFolder:
    """The artifacts of a job. The folder is made with the first one."""

    def __init__(self, artifacts_dir: str, job_id: str) -> None:
        self._parent = artifacts_dir
        self._job_id = job_id
        self._path = f"{artifacts_dir}/{job_id}"

    def keep(self, name: str, data: bytes | str | os.PathLike[str]) -> ArtifactInfo:
        """Raises ValueError for a bad name, OSError for what cannot be read or written."""
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot name an artifact: 1 to 128 letters, digits, dots, dashes and underscores,"
                " no dot in front, no folders"
            )
        if name == RESULT:
            raise ValueError(f"{RESULT!r} is the name of the job's result; take another one for an artifact")
        return self._keep(name, data, is_result=False)

    def keep_result(self, result: bytes) -> ArtifactInfo:
        return self._keep(RESULT, result, is_result=True)

    def _keep(self, name: str, data: bytes | str | os.PathLike[str], is_result: bool) -> ArtifactInfo:
        import hashlib

        digest = hashlib.sha256()
        size = 0
        with _chunks(data) as chunks:
            self._make()
            with self._replacing(name) as file:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
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
        """A file to write to, which then takes its place on disk at once."""
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


@contextmanager
def _chunks(data: bytes | bytearray | memoryview | str | os.PathLike[str]) -> Iterator[Iterator[bytes]]:
    """The bytes of an artifact. Opens its source before anything is made."""
    if isinstance(data, str):
        yield iter((data.encode(),))
    elif isinstance(data, os.PathLike):
        with open(data, "rb") as source:
            yield iter(lambda: source.read(_CHUNK), b"")
    elif isinstance(data, bytes | bytearray | memoryview):
        yield iter((bytes(data),))
    else:
        raise TypeError(f"an artifact is made of bytes, text or the file at a path, not of {type(data).__name__}")


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
