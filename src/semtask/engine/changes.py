"""What has been committed, told to those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from semtask.model.state import FINAL
from semtask.store.base import Change

Listener = Callable[[Sequence[Change]], None]


class Changes:
    """Hands every committed change to the listeners, in order, on the event loop.

    It is made before the store, which publishes to it, and before the services, which listen.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._watches: dict[str, set[Watch]] = {}

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def publish(self, changes: Sequence[Change]) -> None:
        for listener in self._listeners:
            listener(changes)
        if self._watches:
            for change in changes:
                for watch in self._watches.get(change.job_id, ()):
                    watch.note(change)

    def watch(self, job_id: str) -> Watch:
        """Every change of one job. Enter it as a context manager and read the job only inside: none is missed."""
        return Watch(self._watches, [job_id])

    def watch_ends(self, job_ids: Iterable[str], *, enough: int) -> EndWatch:
        """The ends of these jobs. It wakes when `enough` of them have ended since it was entered."""
        return EndWatch(self._watches, job_ids, enough)


class Watch:
    """Sees changes of some jobs from the moment it is entered."""

    def __init__(self, watches: dict[str, set[Watch]], job_ids: Iterable[str]) -> None:
        self._watches = watches
        self._job_ids = frozenset(job_ids)
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        for job_id in self._job_ids:
            self._watches.setdefault(job_id, set()).add(self)
        return self

    def __exit__(self, *_: object) -> None:
        for job_id in self._job_ids:
            watching = self._watches[job_id]
            watching.discard(self)
            if not watching:
                del self._watches[job_id]

    def note(self, change: Change) -> None:
        del change
        self._event.set()

    async def changed(self, timeout_s: float) -> bool:
        """Wait for the next change since the last call; False when the time is over."""
        try:
            async with asyncio.timeout(max(timeout_s, 0)):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class EndWatch(Watch):
    """Counts ends instead of looking at every change: a caller may wait for a thousand jobs."""

    def __init__(self, watches: dict[str, set[Watch]], job_ids: Iterable[str], enough: int) -> None:
        super().__init__(watches, job_ids)
        self._ended: set[str] = set()
        self._enough = enough

    def seen(self, job_ids: Iterable[str]) -> None:
        """These had ended before, as was read from the store."""
        self._ended.update(job_ids)
        self._look()

    def note(self, change: Change) -> None:
        if change.after in FINAL:
            self._ended.add(change.job_id)
            self._look()

    def _look(self) -> None:
        if len(self._ended) >= self._enough:
            self._event.set()
