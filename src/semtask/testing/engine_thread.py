"""The thread that the engine of a test lives in, and the way to it from any other thread or event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from semtask.testing.engine import InlineEngine, inline_engine

T = TypeVar("T")


class EngineThread:
    """Started when it is made. Raises what the engine raises at its start."""

    def __init__(self, home: Path, now_ms: int) -> None:
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, InlineEngine]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(_live(home, now_ms, started)), name="semtask-inline-engine", daemon=True
        )
        self._thread.start()
        self._loop, self._over, self.engine = started.result()
        self._pid = os.getpid()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, waited for in this thread. Raises RuntimeError in a forked child, which has no such thread."""
        if os.getpid() != self._pid:
            work.close()
            raise RuntimeError("a forked child cannot reach the inline engine of its test; use semantica_daemon there")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def acall(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, awaited on the loop of the caller."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def tell(self, say: Callable[..., None], *args: Any) -> None:
        """Have this called there, soon."""
        self._loop.call_soon_threadsafe(say, *args)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


async def _live(
    home: Path, now_ms: int, started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, InlineEngine]]
) -> None:
    over = asyncio.Event()
    try:
        async with inline_engine(home, now_ms) as engine:
            started.set_result((asyncio.get_running_loop(), over, engine))
            await over.wait()
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)
