"""The output of jobs on disk: one log per claim, which the job itself writes and the daemon only reads.

A log over its cap loses its middle (`log_cap.py`). Where that hole lies is asked of the file system each time, so there
is no state that could be wrong after a crash.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from semtask.host.notify import Notifier

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")

MAX_LINE_BYTES = 64 * 1024
MAX_TAIL_BYTES = 4 * 1024 * 1024
_BLOCK = 64 * 1024
_MAX_EXTENTS = 64
_NO_WATCH_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM})
_LOOK_AGAIN_S = 1.0


class Chunk(NamedTuple):
    """Bytes of a log.

    `omitted_bytes` were cut out between the offset asked for and the first byte of `data`, or the end of the log if
    there is none. `size` counts what was written, with what was cut out.
    """

    data: bytes
    next_offset: int
    omitted_bytes: int
    size: int


class LogFiles:
    """The logs under `folder`: `<last two digits of job_id>/<job_id>.<claim_no>.log`, and `.err` for a split stderr.

    Reading blocks for as long as the file system takes, and takes little memory whatever is in the log. A log that is
    not there reads as empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiters: dict[tuple[str, int], set[_Waiter]] = {}
        self._notifier: Notifier | None = None

    def path(self, job_id: str, claim_no: int, stream: Stream = "stdout") -> Path:
        suffix = "log" if stream == "stdout" else "err"
        return self._folder / job_id[-2:] / f"{job_id}.{claim_no}.{suffix}"

    def open(self, job_id: str, claim_no: int, split: bool) -> tuple[int, int | None]:
        """File descriptors for stdout and, if it is apart, for stderr; the caller closes them.

        Old content goes: after a power cut a lost claim's number can come again. Raises OSError.
        """
        out = _create(self.path(job_id, claim_no, "stdout"))
        try:
            err = _create(self.path(job_id, claim_no, "stderr")) if split else None
        except OSError:
            os.close(out)
            raise
        for waiter in self._waiters.get((job_id, claim_no), ()):
            waiter.changed.set()
        return out, err

    def remove(self, job_id: str, claim_no: int) -> None:
        """Delete the logs of a claim. Raises OSError for anything but logs that are gone already."""
        for stream in STREAMS:
            with suppress(FileNotFoundError):
                os.unlink(self.path(job_id, claim_no, stream))

    def read(self, job_id: str, claim_no: int, stream: Stream, offset: int, limit: int) -> Chunk:
        """At most `limit` bytes from `offset` on; a negative one counts from the end.

        A chunk ends where bytes were cut out; the next one then begins behind them. Raises OSError.
        """
        with _reading(self.path(job_id, claim_no, stream)) as fd:
            if fd is None:
                return Chunk(b"", 0, 0, 0)
            size = os.fstat(fd).st_size
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            position, data = _read_data(fd, start, limit, size)
            return Chunk(data, position + len(data), position - start, size)

    def last_lines(self, job_id: str, claim_no: int, stream: Stream, n: int) -> list[str]:
        """The last `n` lines. What was cut out, or is too much to be shown, is a line `[... bytes omitted ...]`.

        Of a line over 64 KiB the end is kept, of all lines together 4 MiB. Bytes that are no UTF-8 are replaced.
        """
        with _reading(self.path(job_id, claim_no, stream)) as fd:
            return [] if fd is None else _lines(_last_pieces(fd, n))[-n:]

    async def wait_for_growth(
        self,
        job_id: str,
        claim_no: int,
        stream: Stream,
        beyond: int,
        timeout_s: float,
        *,
        ended: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Return when the log is longer than `beyond`, when `wake` is called, or after `timeout_s` seconds.

        `ended` is asked once whether the attempt has ended, at a moment from which on `wake` is not missed. Without it
        the caller must know that the attempt runs, with no await between its look and this call.
        """
        path = self.path(job_id, claim_no, stream)
        if _size(path) > beyond:
            return
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        with self._waiting(job_id, claim_no) as waiter:
            if ended is not None and await ended():
                return
            while not waiter.over and (left := deadline - clock()) > 0:
                waiter.changed.clear()
                with self._armed(path, waiter.changed) as armed:
                    if _size(path) > beyond:
                        return
                    await _set_within(waiter.changed, left if armed else min(left, _LOOK_AGAIN_S))

    def wake(self, job_id: str, claim_no: int) -> None:
        """Let everybody go who waits for more output of this claim: there will be none."""
        for waiter in self._waiters.get((job_id, claim_no), ()):
            waiter.over = True
            waiter.changed.set()

    def close(self) -> None:
        """Stop watching files. Nobody may wait after this."""
        for job_id, claim_no in list(self._waiters):
            self.wake(job_id, claim_no)
        if self._notifier is not None:
            self._notifier.close()
            self._notifier = None

    @contextmanager
    def _waiting(self, job_id: str, claim_no: int) -> Iterator[_Waiter]:
        key = (job_id, claim_no)
        waiter = _Waiter()
        self._waiters.setdefault(key, set()).add(waiter)
        try:
            yield waiter
        finally:
            self._waiters[key].discard(waiter)
            if not self._waiters[key]:
                del self._waiters[key]

    @contextmanager
    def _armed(self, path: Path, changed: asyncio.Event) -> Iterator[bool]:
        """Whether `changed` will be set at the next write. A file that is not there yet is announced by `open`."""
        try:
            if self._notifier is None:
                self._notifier = Notifier()
            watch = self._notifier.arm(path, changed.set)
        except FileNotFoundError:
            yield True
            return
        except OSError as error:
            # Other programs of this user may hold all of its inotify watches; following must go on, if less promptly.
            if error.errno not in _NO_WATCH_LEFT:
                raise
            yield False
            return
        notifier = self._notifier
        try:
            yield True
        finally:
            notifier.disarm(watch)


class _Waiter:
    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.over = False


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


@contextmanager
def _reading(path: Path) -> Iterator[int | None]:
    try:
        # O_NONBLOCK: a job that put a pipe in the place of its log must not stop the daemon.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _read_data(fd: int, start: int, limit: int, size: int) -> tuple[int, bytes]:
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
            found, data = _read_data(fd, start, end - start, end)
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
