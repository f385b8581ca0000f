"""Following a log: woken by the write itself, by the end of the attempt, or by the timeout; nothing is missed."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from semtask.executors.output import LogFiles
from semtask.host import notify
from tests.executors.support import JOB, write_log


@pytest.fixture
def files(tmp_path: Path) -> Iterator[LogFiles]:
    files = LogFiles(tmp_path / "jobs")
    yield files
    files.close()


def append(files: LogFiles, data: bytes) -> None:
    with open(files.path(JOB, 1), "ab", buffering=0) as log:
        log.write(data)


async def armed(files: LogFiles) -> None:
    """Let the tasks that wait for the log of JOB run up to their wait."""
    await asyncio.sleep(0)
    assert files._waiters


async def run_and_close(files: LogFiles, waits: list[asyncio.Task[None]]) -> None:
    try:
        async with asyncio.timeout(5):
            await asyncio.gather(*waits)
    finally:
        files.close()


def wait(files: LogFiles, beyond: int, timeout_s: float = 30) -> asyncio.Task[None]:
    return asyncio.create_task(files.wait_for_growth(JOB, 1, "stdout", beyond, timeout_s))


def test_a_write_wakes_within_100_ms(files: LogFiles) -> None:
    write_log(files, b"abc")

    async def follow() -> float:
        waiting = wait(files, 3)
        await armed(files)
        assert not waiting.done()
        began = time.monotonic()
        append(files, b"d")
        await run_and_close(files, [waiting])
        return time.monotonic() - began

    assert asyncio.run(follow()) < 0.1


def test_what_is_there_already_is_not_waited_for(files: LogFiles) -> None:
    write_log(files, b"abc")
    asyncio.run(asyncio.wait_for(files.wait_for_growth(JOB, 1, "stdout", 2, 30), 1))


def test_a_write_between_the_look_and_the_watch_is_not_missed(files: LogFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(files, b"abc")
    arm = notify.Notifier.arm

    def write_just_before(notifier: notify.Notifier, *args: object) -> notify.Watch:
        append(files, b"d")
        return arm(notifier, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(notify.Notifier, "arm", write_just_before)

    async def follow() -> None:
        await run_and_close(files, [wait(files, 3)])

    asyncio.run(follow())


def test_several_followers_of_one_log_are_all_woken_and_one_that_leaves_takes_nothing_along(files: LogFiles) -> None:
    write_log(files, b"abc")

    async def follow() -> None:
        stays, leaves, also_stays = (wait(files, 3) for _ in range(3))
        await armed(files)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        append(files, b"d")
        await run_and_close(files, [stays, also_stays])

    asyncio.run(follow())
    assert not files._waiters


def test_a_truncation_wakes_nobody_and_the_next_growth_does(files: LogFiles) -> None:
    write_log(files, b"abc")

    async def follow() -> None:
        waiting = wait(files, 3)
        await armed(files)
        os.truncate(files.path(JOB, 1), 1)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not waiting.done()
        append(files, b"defg")
        await run_and_close(files, [waiting])

    asyncio.run(follow())


def test_the_end_of_the_attempt_wakes_the_followers_of_this_claim_and_no_others(files: LogFiles) -> None:
    write_log(files, b"abc")

    async def follow() -> None:
        waiting = wait(files, 3)
        await armed(files)
        files.wake(JOB, 2)
        await asyncio.sleep(0.02)
        assert not waiting.done()
        files.wake(JOB, 1)
        await run_and_close(files, [waiting])

    asyncio.run(follow())


def test_the_timeout_ends_the_wait(files: LogFiles) -> None:
    write_log(files, b"abc")
    began = time.monotonic()
    asyncio.run(files.wait_for_growth(JOB, 1, "stdout", 3, 0.05))
    assert 0.05 <= time.monotonic() - began < 10


def test_who_waits_before_the_log_exists_is_woken_by_its_first_byte(files: LogFiles) -> None:
    async def follow() -> None:
        waiting = wait(files, 0)
        await armed(files)
        write_log(files, b"a")
        await run_and_close(files, [waiting])

    asyncio.run(follow())


def test_without_a_watch_left_following_is_slower_and_goes_on(files: LogFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> notify.Watch:
        raise OSError(errno.ENOSPC, "no watch left")

    monkeypatch.setattr(notify.Notifier, "arm", exhausted)
    write_log(files, b"abc")

    async def follow() -> None:
        waiting = wait(files, 3)
        await armed(files)
        append(files, b"d")
        await run_and_close(files, [waiting])

    asyncio.run(follow())


WRITER = """
import os, sys, time
total, seed = int(sys.argv[1]), 0
while total > 0:
    piece = bytes((seed + i) % 251 for i in range(min(total, 997)))
    os.write(1, piece)
    total -= len(piece); seed = (seed + len(piece)) % 251
    if seed % 7 == 0: time.sleep(0.002)
"""


def test_a_follower_of_a_live_writer_gets_every_byte_exactly_once(files: LogFiles) -> None:
    total = 300_000

    async def follow() -> bytes:
        out, _ = files.open(JOB, 1, split=False)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(total), stdout=out)
        os.close(out)
        got = bytearray()
        async with asyncio.timeout(30):
            while len(got) < total:
                await files.wait_for_growth(JOB, 1, "stdout", len(got), 10)
                chunk = files.read(JOB, 1, "stdout", len(got), 4096)
                assert chunk.omitted_bytes == 0
                got += chunk.data
                assert chunk.next_offset == len(got)
            assert await process.wait() == 0
        files.close()
        return bytes(got)

    assert asyncio.run(follow()) == bytes(i % 251 for i in range(total))


def test_a_follower_that_stalls_holds_no_memory_and_causes_no_events(files: LogFiles) -> None:
    """Its watch has fired once and is gone: a writer of 100 MB then costs nothing."""
    command = "import os\nfor _ in range(100): os.write(1, b'z' * (1 << 20))"

    async def follow() -> int:
        out, _ = files.open(JOB, 1, split=False)
        waiting = wait(files, 0)
        await armed(files)
        tracemalloc.start()
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", command, stdout=out)
        os.close(out)
        async with asyncio.timeout(60):
            await waiting
            assert await process.wait() == 0
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert files._notifier is not None
        assert "inotify wd" not in Path(f"/proc/self/fdinfo/{files._notifier._fd}").read_text()
        files.close()
        return peak

    peak = asyncio.run(follow())
    assert files.read(JOB, 1, "stdout", 0, 1).size == 100 << 20
    assert peak < 2 << 20
