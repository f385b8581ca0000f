"""A file system that never answers: who asks it for a file waits in the kernel, where no signal reaches it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_INIT = 26  # opcodes and structures of linux/fuse.h
_HEADER_IN = struct.Struct("=IIQQIIIHH")
_HEADER_OUT = struct.Struct("=IiQ")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")


class HangingDisk:
    def __init__(self, path: Path, fuse: int) -> None:
        self.path = path
        self._fuse: int | None = fuse

    def await_request(self) -> None:
        """Read a request, and leave it at that: from now on not even SIGKILL ends who waits for its answer."""
        assert _HEADER_IN.unpack_from(self._read())[1] != _INIT

    def begin(self) -> None:
        """The kernel's greeting is the one thing that is answered."""
        _, opcode, unique, *_ = _HEADER_IN.unpack_from(self._read())
        assert opcode == _INIT
        body = _INIT_OUT.pack(7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0)
        assert self._fuse is not None
        os.write(self._fuse, _HEADER_OUT.pack(_HEADER_OUT.size + len(body), 0, unique) + body)

    def end(self) -> None:
        """Everybody who waits gets an error."""
        if self._fuse is not None:
            os.close(self._fuse)
            self._fuse = None

    def _read(self) -> bytes:
        assert self._fuse is not None
        assert select.select([self._fuse], [], [], 20)[0], "nobody has asked"
        return os.read(self._fuse, 1 << 17)


@contextmanager
def hanging_disk(path: Path) -> Iterator[HangingDisk]:
    """Skips the test where no file system can be mounted."""
    path.mkdir()
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no file system of our own: {error}")
    disk = HangingDisk(path, fuse)
    try:
        options = f"fd={fuse},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"semtask-test", os.fsencode(path), b"fuse", 0, options):
            pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
        disk.begin()
        yield disk
    finally:
        disk.end()
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["umount", "-l", path], check=False, capture_output=True)
