"""inotify: one call for one change, shared watches, and nobody left waiting."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from semtask.host.notify import Notifier


@asynccontextmanager
async def notifying() -> AsyncIterator[Notifier]:
    notifier = Notifier()
    try:
        yield notifier
    finally:
        notifier.close()


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await event.wait()


async def all_events_read() -> None:
    """Two turns of the loop: one that polls the descriptor, one that runs what it found."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_bytes(b"")
    return path


def append(path: Path, data: bytes = b"x") -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


def test_a_watch_fires_once_and_only_once(log: Path) -> None:
    async def check() -> list[int]:
        calls: list[int] = []
        fired = asyncio.Event()
        async with notifying() as notifier:
            notifier.arm(log, lambda: (calls.append(1), fired.set())[0])  # type: ignore[func-returns-value]
            for _ in range(100):
                append(log)
            await soon(fired)
            append(log)
            await all_events_read()
            return calls

    assert asyncio.run(check()) == [1]


def test_two_watches_of_one_file_both_fire_also_when_one_was_armed_after_an_unread_event(log: Path) -> None:
    async def check() -> None:
        first, second, third = asyncio.Event(), asyncio.Event(), asyncio.Event()
        async with notifying() as notifier:
            notifier.arm(log, first.set)
            notifier.arm(log, second.set)
            append(log)
            notifier.arm(log, third.set)
            await soon(first)
            await soon(second)
            assert not third.is_set()
            append(log)
            await soon(third)

    asyncio.run(check())


def test_a_disarmed_watch_does_not_fire_and_leaves_the_other_one(log: Path) -> None:
    async def check() -> None:
        one, other = asyncio.Event(), asyncio.Event()
        async with notifying() as notifier:
            watch = notifier.arm(log, one.set)
            notifier.arm(log, other.set)
            notifier.disarm(watch)
            notifier.disarm(watch)
            append(log)
            await soon(other)
            assert not one.is_set()

    asyncio.run(check())


def test_disarming_a_watch_that_has_just_fired_is_harmless(log: Path) -> None:
    async def check() -> None:
        fired, again = asyncio.Event(), asyncio.Event()
        async with notifying() as notifier:
            watch = notifier.arm(log, fired.set)
            append(log)
            notifier.disarm(watch)
            await all_events_read()
            assert not fired.is_set()
            notifier.arm(log, again.set)
            append(log)
            await soon(again)

    asyncio.run(check())


def test_a_deleted_file_fires(log: Path) -> None:
    async def check() -> None:
        fired = asyncio.Event()
        async with notifying() as notifier:
            notifier.arm(log, fired.set)
            log.unlink()
            await soon(fired)

    asyncio.run(check())


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    async def check() -> None:
        async with notifying() as notifier:
            with pytest.raises(FileNotFoundError, match="nothing"):
                notifier.arm(tmp_path / "nothing", lambda: None)

    asyncio.run(check())


def test_close_fires_what_is_armed_and_gives_the_descriptor_back(log: Path) -> None:
    async def check() -> None:
        fired = asyncio.Event()
        notifier = Notifier()
        notifier.arm(log, fired.set)
        fd = notifier._fd
        notifier.close()
        notifier.close()
        assert fired.is_set()
        with pytest.raises(OSError) as caught:
            os.fstat(fd)
        assert caught.value.errno == errno.EBADF

    asyncio.run(check())
