"""Threads of async jobs: they belong to the job that gave them work, whoever made them."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from semtask.tasks.context import JobContext, current_or_none


class ThreadWork:
    """What jobs have given to threads and to pools of threads, and is not done yet."""

    def __init__(self) -> None:
        self._open: dict[Future[Any], JobContext] = {}
        self._threads: dict[threading.Thread, JobContext] = {}
        self._in_submit = threading.local()

    def left_by(self, job: JobContext) -> list[str]:
        """What goes on, in words; work that has not begun is cancelled."""
        futures = [future for future, owner in list(self._open.items()) if owner is job]
        running = [future for future in futures if not future.cancel() and not future.done()]
        threads = [thread for thread, owner in list(self._threads.items()) if owner is job and thread.is_alive()]
        return [*(["work in a thread"] if running else []), *(f"thread {thread.name}" for thread in threads)]

    def forget(self, job: JobContext) -> None:
        for thread in [thread for thread, owner in list(self._threads.items()) if owner is job]:
            self._threads.pop(thread, None)

    def add_work(self, future: Future[Any], job: JobContext) -> None:
        self._open[future] = job
        future.add_done_callback(self._done)

    def _done(self, future: Future[Any]) -> None:
        self._open.pop(future, None)

    def add_thread(self, thread: threading.Thread, job: JobContext) -> None:
        """Those of a pool stay with it."""
        if not getattr(self._in_submit, "now", False):
            self._threads[thread] = job

    def submit(self, submit: Callable[..., Future[Any]], *args: Any, **kwargs: Any) -> Future[Any]:
        self._in_submit.now = True
        try:
            return submit(*args, **kwargs)
        finally:
            self._in_submit.now = False


def hand_on_contexts() -> ThreadWork:
    """From now on a thread that a job starts runs in a copy of the job's context, and so does its work for a pool."""
    work = ThreadWork()
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit

    def start_in_context(thread: threading.Thread) -> None:
        job = current_or_none()
        if job is not None:
            thread.run = functools.partial(contextvars.copy_context().run, thread.run)  # type: ignore[method-assign]
        start(thread)
        if job is not None:
            work.add_thread(thread, job)

    def submit_in_context(
        pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        job = current_or_none()
        if job is None:
            return submit(pool, function, *args, **kwargs)
        future = work.submit(submit, pool, contextvars.copy_context().run, function, *args, **kwargs)
        work.add_work(future, job)
        return future

    threading.Thread.start = start_in_context  # type: ignore[method-assign, assignment]
    ThreadPoolExecutor.submit = submit_in_context  # type: ignore[method-assign, assignment]
    return work
