"""The cap of a log: disk use stays about it, head and tail stay whole, the writer notices nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from semtask.executors.output import LogCap, LogFiles
from semtask.host.filesystem import punch_hole
from tests.executors.support import JOB, needs_punching

MB = 1024 * 1024

pytestmark = needs_punching


@pytest.fixture
def files(tmp_path: Path) -> LogFiles:
    return LogFiles(tmp_path / "jobs")


@asynccontextmanager
async def running(
    files: LogFiles, max_bytes: int, on_uncappable: Callable[[str, int], None] = lambda _job, _claim: None
) -> AsyncIterator[LogCap]:
    cap = LogCap(files, max_bytes, on_uncappable)
    task = asyncio.create_task(cap.run())
    try:
        yield cap
        assert not task.done(), "the timer died"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def disk_use(files: LogFiles, stream: str = "stdout") -> int:
    return files.path(JOB, 1, "stderr" if stream == "stderr" else "stdout").stat().st_blocks * 512


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is awaited is on disk
            await asyncio.sleep(0.005)


# Numbered lines of 16 bytes, so that each place of the log says where it is.
WRITER = """
import os, sys
total, fd = int(sys.argv[1]), int(sys.argv[2])
for at in range(0, total, 1 << 16):
    piece = b''.join(b'%015d\\n' % i for i in range(at, at + (1 << 16), 16))
    while piece: piece = piece[os.write(fd, piece):]
"""


async def write(files: LogFiles, total: int) -> None:
    out, _ = files.open(JOB, 1, split=False)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(total), "1", stdout=out)
    os.close(out)
    async with asyncio.timeout(60):
        assert await process.wait() == 0


def numbered(start: int, end: int) -> bytes:
    return b"".join(b"%015d\n" % i for i in range(start, end, 16))


def test_a_writer_of_100_mb_stays_under_a_cap_of_1_mb_and_head_and_tail_are_whole(files: LogFiles) -> None:
    total = 100 * MB

    async def capped() -> None:
        async with running(files, MB - 4321) as cap:  # no multiple of a block
            cap.add(JOB, 1)
            await write(files, total)
            cap.remove(JOB, 1)
            await until(lambda: disk_use(files) <= MB)

    asyncio.run(capped())
    assert files.path(JOB, 1).stat().st_size == total
    head = files.read(JOB, 1, "stdout", 0, total)
    assert head.data == numbered(0, head.next_offset)
    assert MB // 5 <= len(head.data) <= MB // 2
    tail = files.read(JOB, 1, "stdout", head.next_offset, total)
    assert tail.next_offset == total
    assert tail.data == numbered(total - len(tail.data), total)
    assert MB // 3 <= len(tail.data) < MB
    assert head.next_offset + tail.omitted_bytes + len(tail.data) == total


def test_a_reader_during_the_cutting_never_sees_a_byte_that_was_not_written(files: LogFiles) -> None:
    total = 40 * MB

    async def follow(cap: LogCap) -> tuple[int, int]:
        offset = got = omitted = 0
        while offset < total:
            await files.wait_for_growth(JOB, 1, "stdout", offset, 5)
            chunk = files.read(JOB, 1, "stdout", offset, MB)
            start = chunk.next_offset - len(chunk.data)
            assert chunk.data == numbered(start - start % 16, chunk.next_offset + 16)[start % 16 :][: len(chunk.data)]
            assert start == offset + chunk.omitted_bytes
            offset, got, omitted = chunk.next_offset, got + len(chunk.data), omitted + chunk.omitted_bytes
        return got, omitted

    async def both() -> None:
        async with running(files, MB) as cap:
            cap.add(JOB, 1)
            _, (got, omitted) = await asyncio.gather(write(files, total), follow(cap))
            assert got + omitted == total
        files.close()

    asyncio.run(both())


def test_a_log_below_the_cap_keeps_every_byte(files: LogFiles) -> None:
    async def capped() -> None:
        async with running(files, MB) as cap:
            cap.add(JOB, 1)
            await write(files, 15 * MB // 16)
            cap.remove(JOB, 1)
            await until(lambda: not cap._ended)

    asyncio.run(capped())
    assert files.read(JOB, 1, "stdout", 0, MB).data == numbered(0, 15 * MB // 16)


def test_a_split_stderr_is_capped_too(files: LogFiles) -> None:
    async def capped() -> None:
        out, err = files.open(JOB, 1, split=True)
        assert err is not None
        os.write(err, b"x" * 5 * MB)
        os.close(out)
        os.close(err)
        async with running(files, MB) as cap:
            cap.add(JOB, 1)
            await until(lambda: disk_use(files, "stderr") <= MB)

    asyncio.run(capped())


def test_a_log_of_a_former_daemon_is_cut_when_its_attempt_is_settled(files: LogFiles) -> None:
    async def capped() -> None:
        await write(files, 5 * MB)
        async with running(files, MB) as cap:
            cap.remove(JOB, 1)
            await until(lambda: disk_use(files) <= MB)

    asyncio.run(capped())


def test_where_holes_cannot_be_punched_the_job_is_reported_once(
    files: LogFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    def refuse(_fd: int, _start: int, _length: int) -> None:
        nonlocal tried
        tried += 1
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("semtask.executors.output.punch_hole", refuse)
    reported: list[tuple[str, int]] = []

    async def capped() -> None:
        async with running(files, MB, lambda job, claim: reported.append((job, claim))) as cap:
            cap.add(JOB, 1)
            await write(files, 5 * MB)
            await until(lambda: bool(reported))
            cap.remove(JOB, 1)
            await until(lambda: tried == 2)  # the last look, when the attempt has ended, fails as well

    asyncio.run(capped())
    assert reported == [(JOB, 1)]


def test_a_failure_that_may_pass_is_logged_and_tried_again(
    files: LogFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [errno.ENOSPC, errno.EIO]

    def fail_first(fd: int, start: int, length: int) -> None:
        if failures:
            raise OSError(failures.pop(), "not now")
        punch_hole(fd, start, length)

    monkeypatch.setattr("semtask.executors.output.punch_hole", fail_first)

    async def capped() -> None:
        async with running(files, MB, lambda _job, _claim: pytest.fail("not uncappable")) as cap:
            cap.add(JOB, 1)
            await write(files, 5 * MB)
            await until(lambda: disk_use(files) <= MB)

    asyncio.run(capped())
    assert [record.__dict__["job_id"] for record in caplog.records] == [JOB, JOB]


def test_the_timer_sleeps_while_nothing_runs(files: LogFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    async def idle() -> int:
        async with running(files, MB) as cap:
            cap.add(JOB, 1)
            cap.remove(JOB, 1)
            await until(lambda: not cap._ended)
            await asyncio.sleep(0)
            loop = asyncio.get_running_loop()
            return len(loop._scheduled) - sum(h.cancelled() for h in loop._scheduled)  # type: ignore[attr-defined]

    assert asyncio.run(idle()) == 0


def test_a_writer_of_1_gb_keeps_its_disk_use_around_the_cap(files: LogFiles) -> None:
    """64 MiB, the default; the peak is what the writer adds between two looks."""
    cap_bytes, peak, done = 64 * MB, 0, threading.Event()
    command = "import os\nfor _ in range(1024): os.write(1, b'z' * (1 << 20))"

    def measure() -> None:
        nonlocal peak
        while not done.wait(0.002):
            if files.path(JOB, 1).exists():
                peak = max(peak, disk_use(files))

    async def capped() -> None:
        async with running(files, cap_bytes) as cap:
            out, _ = files.open(JOB, 1, split=False)
            cap.add(JOB, 1)
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", command, stdout=out)
            os.close(out)
            async with asyncio.timeout(60):
                assert await process.wait() == 0
            cap.remove(JOB, 1)
            await until(lambda: disk_use(files) <= cap_bytes)

    measuring = threading.Thread(target=measure)
    measuring.start()
    try:
        asyncio.run(capped())
    finally:
        done.set()
        measuring.join()
    print(f"peak {peak / MB:.0f} MiB")
    assert files.path(JOB, 1).stat().st_size == 1024 * MB
    assert peak < 8 * cap_bytes
