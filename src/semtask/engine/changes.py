"""What has been committed, told to those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from semtask.store.base import Change

Listener = Callable[[Sequence[Change]], None]


class Changes:
    """Hands every committed change to the listeners, in order, on the event loop.

    It is made before the store, which publishes to it, and before the services, which listen.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._waiters: dict[str, set[asyncio.Event]] = {}

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def publish(self, changes: Sequence[Change]) -> None:
        for listener in self._listeners:
            listener(changes)
        if self._waiters:
            for change in changes:
                for event in self._waiters.get(change.job_id, ()):
                    event.set()

    def watch(self, job_ids: Iterable[str]) -> Watch:
        """Use as a context manager, and read the jobs only inside: then no change is missed."""
        return Watch(self._waiters, tuple(job_ids))


class Watch:
    """Sees changes of some jobs from the moment it is entered."""

    def __init__(self, waiters: dict[str, set[asyncio.Event]], job_ids: Sequence[str]) -> None:
        self._waiters = waiters
        self._job_ids = job_ids
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        for job_id in self._job_ids:
            self._waiters.setdefault(job_id, set()).add(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        for job_id in self._job_ids:
            waiting = self._waiters.get(job_id)
            if waiting is not None:
                waiting.discard(self._event)
                if not waiting:
                    del self._waiters[job_id]

    async def changed(self, timeout_s: float) -> bool:
        """Wait for the next change since the last call; False when the time is over."""
        try:
            await asyncio.wait_for(self._event.wait(), max(timeout_s, 0))
        except TimeoutError:
            return False
        self._event.clear()
        return True
