"""The way of an app to its daemon: a client per thread and one per event loop, made at the first request.

`answered_by` puts something else in the place of every daemon: see testing.inline.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from semtask.client.calls import Call, call_of
from semtask.client.client import Client
from semtask.client.messages import Request
from semtask.config.loading import load
from semtask.config.settings import Settings
from semtask.tasks.context import refuse_while_importing
from semtask.tasks.registry import Registry

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from semtask.client.async_client import AsyncClient

R = TypeVar("R")
C = TypeVar("C", bound="Client | AsyncClient")


class StandIn(Protocol):
    """Answers in place of a daemon. `registry`: the tasks of the app that asks."""

    def now_ms(self) -> int: ...
    def send(self, call: Call[R], registry: Registry) -> R: ...
    async def asend(self, call: Call[R], registry: Registry) -> R: ...


_stand_in: StandIn | None = None


@contextmanager
def answered_by(stand_in: StandIn) -> Iterator[None]:
    """Send the requests of all apps of this process there."""
    global _stand_in  # noqa: PLW0603 - it stands for all of them
    before, _stand_in = _stand_in, stand_in
    try:
        yield
    finally:
        _stand_in = before


class _Closing(Generic[C]):
    """Closes its client when nobody has it any more: its thread or its event loop has ended."""

    def __init__(self, client: C) -> None:
        self.client = client

    def __del__(self) -> None:
        self.client.close()


class Connection:
    """Sends the requests of `client/calls.py`, from any thread, event loop and forked child.

    `registry`: the tasks of its app.
    """

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        url: str | None = None,
        autostart: bool | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        registry: Registry | None = None,
    ) -> None:
        self.registry = Registry() if registry is None else registry
        self._now_ms = now_ms
        self._home = home
        self._url = url
        self._autostart = autostart
        self._forget()

    def send(self, call: Call[R]) -> R:
        """Raises the errors of `Client`."""
        if _stand_in is not None:
            return _stand_in.send(call, self.registry)
        refuse_while_importing()
        return self._of_thread().send(call)

    async def asend(self, call: Call[R]) -> R:
        if _stand_in is not None:
            return await _stand_in.asend(call, self.registry)
        refuse_while_importing()
        return await self.aclient().send(call)

    def answer(self, request: Request[R]) -> R:
        return self.send(call_of(request))

    async def aanswer(self, request: Request[R]) -> R:
        return await self.asend(call_of(request))

    def now_ms(self) -> int:
        """Wall clock, epoch ms."""
        return self._now_ms() if _stand_in is None else _stand_in.now_ms()

    def close(self) -> None:
        """Close the connections of all threads and event loops. The next request opens another one."""
        self._forget()

    @contextmanager
    def moved_to(self, home: str | os.PathLike[str]) -> Iterator[None]:
        """Speak to the daemon of this home meanwhile, whatever the environment says, and start none."""
        before = self._home, self._url, self._autostart
        self._aim(home, "", False)
        try:
            yield
        finally:
            self._aim(*before)

    def _aim(self, home: str | os.PathLike[str] | None, url: str | None, autostart: bool | None) -> None:
        self._home, self._url, self._autostart = home, url, autostart
        self.__dict__.pop("settings", None)
        self._forget()

    @cached_property
    def settings(self) -> Settings:
        return load(flags={"home": self._home, "autostart": self._autostart})

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._threads = threading.local()
        self._loops: WeakKeyDictionary[AbstractEventLoop, _Closing[AsyncClient]] = WeakKeyDictionary()

    def _of_thread(self) -> Client:
        if self._pid != os.getpid():
            self._forget()  # what is open belongs to the parent: two processes must not read from one socket
        try:
            return self._threads.kept.client  # type: ignore[no-any-return]
        except AttributeError:
            client = Client(self._home, self._url, self._autostart)
            self._threads.kept = _Closing(client)
            return client

    def aclient(self) -> AsyncClient:
        """The client of the event loop that runs here."""
        import asyncio  # here: not everybody needs it, and it costs a start 20 ms

        from semtask.client.async_client import AsyncClient

        if self._pid != os.getpid():
            self._forget()
        loop = asyncio.get_running_loop()
        with self._lock:
            if (kept := self._loops.get(loop)) is None:
                kept = self._loops[loop] = _Closing(AsyncClient(self._home, self._url, self._autostart))
        return kept.client
