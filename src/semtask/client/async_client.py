"""The Python client for asyncio: the methods of `Client`, to be awaited."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from semtask.client import autostart as starter
from semtask.client import calls
from semtask.client.address import NotRunning, address_of
from semtask.client.async_transport import AsyncTransport
from semtask.client.calls import Call
from semtask.client.client import as_method
from semtask.client.http import Notice, print_notice
from semtask.client.transport import Transport
from semtask.config.loading import load

P = ParamSpec("P")
R = TypeVar("R")


def _method(build: Callable[P, Call[R]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]:
    @functools.wraps(build)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self.send(build(*args, **kwargs))

    return as_method(method)


class AsyncClient:
    """Connections to the daemon of one home, for one event loop. Any number of tasks may use it at the same time.

    Each request has a connection of its own while it is under way; some are kept for the next ones. Everything else is
    as with `Client`: the arguments, the settings, the start of the daemon, the methods and their errors.
    """

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        url: str | None = None,
        autostart: bool | None = None,
        *,
        notice: Notice = print_notice,
    ) -> None:
        self._settings = load(flags={"home": home, "autostart": autostart})
        self._notice = notice
        self._transport = AsyncTransport(address_of(self._settings, url), notice=notice)
        self._starting = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._settings.home}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are not in use. The next request opens another one."""
        self._transport.close()

    enqueue = _method(calls.enqueue)
    enqueue_many = _method(calls.enqueue_many)
    get_job = _method(calls.get_job)
    query_jobs = _method(calls.query_jobs)
    wait = _method(calls.wait)
    tail_lines = _method(calls.tail_lines)
    read_log = _method(calls.read_log)
    cancel = _method(calls.cancel)
    retry = _method(calls.retry)
    list_apps = _method(calls.list_apps)
    reload_apps = _method(calls.reload_apps)
    list_tasks = _method(calls.list_tasks)
    list_workers = _method(calls.list_workers)
    list_queues = _method(calls.list_queues)
    pause_queue = _method(calls.pause_queue)
    resume_queue = _method(calls.resume_queue)
    configure_queue = _method(calls.configure_queue)
    stats = _method(calls.stats)
    maintenance = _method(calls.maintenance)
    start_daemon = _method(calls.start_daemon)
    discover = _method(calls.discover)

    async def send(self, call: Call[R]) -> R:
        """The answer to a request of `calls.py`."""
        try:
            response = await self._exchange(call)
        except NotRunning:
            if not self._settings.autostart:
                raise
            async with self._starting:
                await asyncio.to_thread(self._start)  # nothing was sent yet
            response = await self._exchange(call)
        return call.result(response)

    async def _exchange(self, call: Call[R]) -> bytes:
        return await self._transport.exchange(call.method, call.body, timeout=call.timeout, repeatable=call.repeatable)

    def _start(self) -> None:
        with Transport(self._transport.address, notice=self._notice) as transport:
            starter.start(self._settings, transport, self._notice)
