"""The log of one claim, as the code of its task writes it: `2026-11-23T12:00:00.123Z INFO text`.

The level of a log record is its own name; what was printed has OUT, what went to stderr ERR.
"""

from __future__ import annotations

import codecs
import os
import select
import threading
import time

_MAX_PARTIAL = 64 * 1024

_second = 0
_second_text = ""


def stamped(level: str, text: str) -> bytes:
    """The lines of `text`, each with the time and the level; a newline at its end is not the start of one more."""
    prefix = f"{_now()} {level} "
    lines = text.split("\n")
    if len(lines) > 1 and not lines[-1]:
        lines.pop()
    return "".join([f"{prefix}{line}\n" for line in lines]).encode("utf-8", "backslashreplace")


def _now() -> str:
    global _second, _second_text  # noqa: PLW0603 - a cache
    now_ms = time.time_ns() // 1_000_000
    second, ms = divmod(now_ms, 1000)
    if second != _second:
        _second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = second
    return f"{_second_text}.{ms:03d}Z"


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # a process that has the same pipe has made it so
            _wait_for_room(fd)


def _wait_for_room(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


class JobLog:
    """The file is made with the first output. Raises OSError where that cannot be written, as any file would."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None
        self._stream: int | None = None  # the way into it while others write there too, which keeps the order
        self._partial: dict[tuple[str, int], str] = {}
        self._decoders: dict[tuple[str, int], codecs.IncrementalDecoder] = {}
        self._identity: tuple[int, int] | None = None  # of the file
        self._way: tuple[int, int] | None = None  # of the pipe
        self._opening = threading.Lock()

    def print(self, level: str, data: str | bytes) -> None:
        """Part of a stream. A line is written when it ends: those of threads must not mix."""
        key = (level, threading.get_ident())
        text = self._partial.pop(key, "") + self._text(key, data)
        lines, newline, rest = text.rpartition("\n")
        if len(rest) > _MAX_PARTIAL:
            lines, newline, rest = text, "\n", ""
        if rest:
            self._partial[key] = rest
        if newline:
            self.write(level, lines + newline)

    def _text(self, key: tuple[str, int], data: str | bytes) -> str:
        """Text of a stream of bytes; a character may come in several parts."""
        decoder = self._decoders.get(key)
        if isinstance(data, str):
            return data if decoder is None else decoder.decode(b"", True) + data
        if decoder is None:
            decoder = self._decoders[key] = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        return decoder.decode(data)

    def write(self, level: str, text: str) -> None:
        """Whole lines."""
        write_all(self.way(), stamped(level, text))

    def fd(self) -> int:
        if self._fd is None:
            with self._opening:
                if self._fd is None:
                    fd = _create(self._path)
                    status = os.fstat(fd)
                    self._identity = status.st_dev, status.st_ino
                    self._fd = fd
        return self._fd

    @property
    def is_led(self) -> bool:
        """Whether it is written to through a pipe."""
        return self._stream is not None

    def lead(self, stream: int) -> None:
        """Write into this pipe from now on."""
        status = os.fstat(stream)
        self._way = status.st_dev, status.st_ino
        self._stream = stream

    def unlead(self) -> bool:
        """Write into the file again, and close the pipe; whether there was one."""
        if self._stream is None:
            return False
        os.close(self._stream)
        self._stream = self._way = None
        return True

    def way(self) -> int:
        """The descriptor that what is written goes to: the pipe, or the file."""
        return self.fd() if self._stream is None else self._stream

    def is_it(self, status: os.stat_result) -> bool:
        """Whether this is the status of the log's file, or of the pipe to it."""
        return (status.st_dev, status.st_ino) in {self._identity, self._way}

    def in_child(self, fd: int | None) -> None:
        """This is a forked child of the job, in which the descriptor may be closed and used for something else."""
        self._opening = threading.Lock()
        self._partial = {}  # that is for the parent to write
        self._stream = None
        self._decoders = {}
        if fd is not None:
            self._fd = fd

    def flush(self) -> None:
        """Write what is left of unfinished lines."""
        for key, decoder in self._decoders.items():
            if rest := decoder.decode(b"", True):
                self._partial[key] = self._partial.get(key, "") + rest
        partial, self._partial = self._partial, {}
        for (level, _), text in partial.items():
            self.write(level, text)

    def close(self) -> int | None:
        """Its size in bytes, None if nothing was written. Unfinished lines must have been flushed."""
        if self._fd is None:
            return None
        size = os.lseek(self._fd, 0, os.SEEK_END)
        os.close(self._fd)
        self._fd = None
        return size


def _create(path: str) -> int:
    # Old content goes: after a power cut a lost claim's number can come again.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(path, flags, 0o600)
    return fd if fd > 2 else _above_the_standard_streams(fd)


def _above_the_standard_streams(fd: int) -> int:
    """The job has closed one of them; its number is not ours."""
    import fcntl

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)
