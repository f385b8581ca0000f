"""The output of jobs on disk: one log per claim, which its shim or its worker writes and the daemon only reads.

A log over its cap loses its middle. Where that hole lies is asked of the file system each time, so there is no state
that could be wrong after a crash.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from semtask.executors.log_reader import last_lines, read_data
from semtask.host.filesystem import open_beneath, punch_hole
from semtask.host.notify import Notifier

logger = logging.getLogger("semtask.output")

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")

_NO_WATCH_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM})
_LOOK_AGAIN_S = 1.0
_LOOK_FOR_S = 0.1  # a task makes its log at its first output, and announces it to nobody

# A job can fill the page cache at gigabytes per second, so a log that is being written is looked at often.
_FAST_S, _CALM_S, _SILENT_S = 0.01, 0.05, 0.4
_CANNOT_PUNCH = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EPERM})


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
        self.folder = os.fspath(folder)
        self._waiters: dict[tuple[str, int], set[_Waiter]] = {}
        self._notifier: Notifier | None = None

    def path(self, job_id: str, claim_no: int, stream: Stream = "stdout") -> Path:
        return Path(self.name(job_id, claim_no, stream))

    def name(self, job_id: str, claim_no: int, stream: Stream) -> str:
        """The path as text: it is made several times for every attempt."""
        return f"{self.folder}/{self._within(job_id, claim_no, stream)}"

    @staticmethod
    def _within(job_id: str, claim_no: int, stream: Stream) -> str:
        suffix = "log" if stream == "stdout" else "err"
        return f"{job_id[-2:]}/{job_id}.{claim_no}.{suffix}"

    def open(self, job_id: str, claim_no: int, split: bool) -> tuple[int, int | None]:
        """File descriptors for stdout and, if it is apart, for stderr; the caller closes them.

        Old content goes: after a power cut a lost claim's number can come again. Raises OSError.
        """
        out = _create(self.folder, self._within(job_id, claim_no, "stdout"))
        try:
            err = _create(self.folder, self._within(job_id, claim_no, "stderr")) if split else None
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
        with _reading(self.folder, self._within(job_id, claim_no, stream)) as fd:
            if fd is None:
                return Chunk(b"", 0, 0, 0)
            size = os.fstat(fd).st_size
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            position, data = read_data(fd, start, limit, size)
            return Chunk(data, position + len(data), position - start, size)

    def last_lines(self, job_id: str, claim_no: int, stream: Stream, n: int) -> list[str]:
        """The last `n` lines. What was cut out, or is too much to be shown, is a line `[... bytes omitted ...]`.

        Of a line over 64 KiB the end is kept, of all lines together 4 MiB. Bytes that are no UTF-8 are replaced.
        """
        with _reading(self.folder, self._within(job_id, claim_no, stream)) as fd:
            return [] if fd is None else last_lines(fd, n)

    async def wait_for_growth(self, job_id: str, claim_no: int, stream: Stream, beyond: int, timeout_s: float) -> None:
        """Return when the log is longer than `beyond`, when `wake` is called, or after `timeout_s` seconds."""
        path = self.path(job_id, claim_no, stream)
        if _size(path) > beyond:
            return
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        with self._waiting(job_id, claim_no) as waiter:
            while not waiter.over and (left := deadline - clock()) > 0:
                waiter.changed.clear()
                with self._armed(path, waiter.changed) as look_again_s:
                    if _size(path) > beyond:
                        return
                    await _set_within(waiter.changed, min(left, look_again_s))

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
    def _armed(self, path: Path, changed: asyncio.Event) -> Iterator[float]:
        """Have `changed` set at the next write. Where that cannot be, says after how many seconds to look again."""
        try:
            if self._notifier is None:
                self._notifier = Notifier()
            watch = self._notifier.arm(path, changed.set)
        except FileNotFoundError:
            yield _LOOK_FOR_S
            return
        except OSError as error:
            # Other programs of this user may hold all of its inotify watches; following must go on, if less promptly.
            if error.errno not in _NO_WATCH_LEFT:
                raise
            yield _LOOK_AGAIN_S
            return
        notifier = self._notifier
        try:
            yield math.inf
        finally:
            notifier.disarm(watch)


class LogCap:
    """Keeps the logs of running jobs at about `max_bytes` of disk each, whatever they write.

    A log over the cap loses its middle: the first quarter and the last half of the cap stay. The job goes on writing
    and notices nothing. `on_uncappable` is called once for a running job whose log the file system cannot punch.
    """

    def __init__(self, files: LogFiles, max_bytes: int, on_uncappable: Callable[[str, int], None]) -> None:
        self._files = files
        self._max_bytes = max_bytes
        self._on_uncappable = on_uncappable
        self._running: dict[tuple[str, int], _Measured] = {}
        self._ended: list[_Measured] = []
        self._news = asyncio.Event()

    def add(self, job_id: str, claim_no: int) -> None:
        """The attempt begins."""
        self._running[job_id, claim_no] = self._measured(job_id, claim_no)
        self._news.set()

    def remove(self, job_id: str, claim_no: int) -> None:
        """The attempt has ended: its log is cut a last time, and its followers learn that no more will come."""
        self._running.pop((job_id, claim_no), None)
        self._ended.append(self._measured(job_id, claim_no))
        self._news.set()
        self._files.wake(job_id, claim_no)

    async def run(self) -> None:
        """Look at the logs until cancelled: more often while one grows fast, never while nothing runs."""
        clock = asyncio.get_running_loop().time
        interval, looked = _CALM_S, clock()
        while True:
            await _set_within(self._news, interval if self._running or self._ended else None)
            if self._news.is_set():
                self._news.clear()
                await asyncio.sleep(min(interval, _CALM_S))
            before, looked = looked, clock()
            growth = await self._look()
            if growth > 0:
                # The next look comes before the fastest log can have grown by another quarter of the cap.
                quarter_s = (looked - before) * (self._max_bytes / 4) / growth
                interval = max(_FAST_S, min(quarter_s, _CALM_S))
            else:
                interval = min(2 * interval, _SILENT_S)

    async def _look(self) -> int:
        """Cut what is over the cap. Returns by how much the fastest log has grown."""
        ended, self._ended = self._ended, []
        logs = [*self._running.values(), *ended]
        return max([await self._look_at(log, path) for log in logs for path in log.sizes], default=0)

    async def _look_at(self, log: _Measured, path: str) -> int:
        try:
            stat = os.stat(path, follow_symlinks=False)
            if stat.st_blocks * 512 > self._max_bytes:
                # In a thread: a file system that is frozen or busy must not stop the daemon.
                await asyncio.to_thread(_cut_middle, path, self._max_bytes)
        except FileNotFoundError:
            return 0
        except OSError as error:
            if error.errno not in _CANNOT_PUNCH:
                logger.warning("a log could not be cut, trying again: %s", error, extra={"job_id": log.key[0]})
            elif self._running.pop(log.key, None) is not None:
                self._on_uncappable(*log.key)
            return 0
        growth = stat.st_size - log.sizes[path]
        log.sizes[path] = stat.st_size
        return growth

    def _measured(self, job_id: str, claim_no: int) -> _Measured:
        paths = (self._files.name(job_id, claim_no, stream) for stream in STREAMS)
        return _Measured((job_id, claim_no), dict.fromkeys(paths, 0))


class _Measured(NamedTuple):
    """The logs of a claim, by path, with their lengths at the last look."""

    key: tuple[str, int]
    sizes: dict[str, int]


class _Waiter:
    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.over = False


async def _set_within(event: asyncio.Event, seconds: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _create(root: str, path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC  # not O_APPEND, which splice refuses
    try:
        return open_beneath(root, path, flags)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(f"{root}/{path}"), mode=0o700, exist_ok=True)
        return open_beneath(root, path, flags)


@contextmanager
def _reading(root: str, path: str) -> Iterator[int | None]:
    try:
        # O_NONBLOCK: a job that put a pipe in the place of its log must not stop the daemon.
        fd = open_beneath(root, path, os.O_RDONLY | os.O_NONBLOCK)
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


def _cut_middle(path: str, max_bytes: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        stat = os.fstat(fd)
        # Whole blocks only: then the hole that the file system reports is exactly what was cut.
        block = max(stat.st_blksize, mmap.PAGESIZE)
        start = -(-max_bytes // 4 // block) * block
        end = (stat.st_size - max_bytes // 2) // block * block
        if start < end:
            punch_hole(fd, start, end - start)
    finally:
        os.close(fd)
