"""Threads of async jobs: they belong to the job that gave them work, whoever made them."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from semtask.tasks.context import current_or_none


class PoolWork:
    """What jobs have given to pools of threads and is not done yet."""

    def __init__(self) -> None:
        self._open: set[Future[Any]] = set()

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(self, future: Future[Any]) -> None:
        self._open.add(future)
        future.add_done_callback(self._open.discard)


def hand_on_contexts() -> PoolWork:
    """From now on a thread that a job starts runs in a copy of the job's context, and so does its work for a pool."""
    work = PoolWork()
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit

    def start_in_context(thread: threading.Thread) -> None:
        if current_or_none() is not None:
            thread.run = functools.partial(contextvars.copy_context().run, thread.run)  # type: ignore[method-assign]
        start(thread)

    def submit_in_context(
        pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        if current_or_none() is None:
            return submit(pool, function, *args, **kwargs)
        future = submit(pool, contextvars.copy_context().run, function, *args, **kwargs)
        work.add(future)
        return future

    threading.Thread.start = start_in_context  # type: ignore[method-assign, assignment]
    ThreadPoolExecutor.submit = submit_in_context  # type: ignore[method-assign, assignment]
    return work
