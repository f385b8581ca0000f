"""Reading a log file that may have lost its middle while the job goes on writing to its end."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

MAX_LINE_BYTES = 64 * 1024
MAX_TAIL_BYTES = 4 * 1024 * 1024
_BLOCK = 64 * 1024
_MAX_EXTENTS = 64


def read_data(fd: int, start: int, limit: int, size: int) -> tuple[int, bytes]:
    """The first bytes of real data in [start, size) and where they are; (size, b"") if there are none."""
    position = start
    while position < size:
        found = _seek(fd, position, os.SEEK_DATA, size)
        if found >= size:
            return size, b""
        data = os.pread(fd, min(limit, size - found), found)
        # Asked after the read: bytes that still are data now were data while they were read, as holes only grow.
        if _seek(fd, found, os.SEEK_DATA, size) == found:
            return found, data[: _seek(fd, found, os.SEEK_HOLE, size) - found]
        position = found
    return start, b""


def _seek(fd: int, position: int, whence: int, size: int) -> int:
    try:
        return min(os.lseek(fd, position, whence), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole, or nothing at all, up to the end
            return size
        raise


def last_lines(fd: int, n: int) -> list[str]:
    """The last `n` lines, at most MAX_TAIL_BYTES of them. What is cut out or left out is a line of its own."""
    return _lines(_last_pieces(fd, n))[-n:]


class _Omitted(NamedTuple):
    size: int


def _last_pieces(fd: int, n: int) -> deque[bytes | _Omitted]:
    """The end of the log in file order: enough for `n` lines, or as much as may be shown."""
    size = os.fstat(fd).st_size
    pieces: deque[bytes | _Omitted] = deque()
    newlines = budget = 0
    end = size
    for low, high in reversed(deque(_extents(fd, size), maxlen=_MAX_EXTENTS)):
        _omit(pieces, end - high)
        end = high
        while end > low:
            if newlines > n:
                return pieces
            if budget >= MAX_TAIL_BYTES:
                _omit(pieces, end)
                return pieces
            start = max(low, end - _BLOCK)
            found, data = read_data(fd, start, end - start, end)
            # Punched out since the extents were listed: it counts as omitted like any other hole.
            _omit(pieces, end - found - len(data))
            pieces.appendleft(data)
            _omit(pieces, found - start)
            newlines += data.count(b"\n")
            budget += len(data)
            end = start
    _omit(pieces, end)
    return pieces


def _omit(pieces: deque[bytes | _Omitted], count: int) -> None:
    if count <= 0:
        return
    if pieces and isinstance(pieces[0], _Omitted):
        count += pieces.popleft().size  # type: ignore[union-attr]
    pieces.appendleft(_Omitted(count))


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size and (start := _seek(fd, position, os.SEEK_DATA, size)) < size:
        position = _seek(fd, start, os.SEEK_HOLE, size)
        yield start, position


def _lines(pieces: deque[bytes | _Omitted]) -> list[str]:
    lines: list[str] = []
    line = bytearray()
    for piece in pieces:
        if isinstance(piece, _Omitted):
            if line:
                lines.append(_text(line))
                line.clear()
            lines.append(f"[... {piece.size:,} bytes omitted ...]")
            continue
        first, *rest = piece.split(b"\n")
        line += first
        for following in rest:
            lines.append(_text(line))
            line[:] = following
    if line:
        lines.append(_text(line))
    return lines


def _text(line: bytearray) -> str:
    over = len(line) - MAX_LINE_BYTES
    if over <= 0:
        return line.decode(errors="replace")
    return f"[... {over:,} bytes of this line omitted ...] " + line[over:].decode(errors="replace")
