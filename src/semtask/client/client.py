"""The Python client: one typed method per method of the API, described in `calls.py`."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from semtask.client import autostart as starter
from semtask.client import calls
from semtask.client.address import NotRunning, address_of
from semtask.client.calls import Call
from semtask.client.http import Notice, print_notice
from semtask.client.transport import Transport
from semtask.config.loading import load

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


def _method(build: Callable[P, Call[R]]) -> Callable[Concatenate[Client, P], R]:
    @functools.wraps(build)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.send(build(*args, **kwargs))

    return as_method(method)


def as_method(function: F) -> F:
    """Describe it to help() and editors as the method that it is: with `self`, and with the result itself."""
    wrapped = inspect.signature(function)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    result = wrapped.return_annotation.removeprefix("Call[").removesuffix("]")
    signature = wrapped.replace(parameters=[first, *wrapped.parameters.values()], return_annotation=result)
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


class Client:
    """A connection to the daemon of one home. Not thread-safe: make one per thread; it costs a socket.

    `home` and `autostart` go before the settings; `url` (http://127.0.0.1:port) before SEMANTICA_RPC_URL and the unix
    socket. Nothing is opened, and no daemon started, before the first request.

    Every method raises the class of `semtask.errors` that stands for the daemon's error code, and DaemonUnavailable
    if none answers. Times are epoch milliseconds, durations milliseconds. A parameter that is left out is not sent.
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
        self._transport = Transport(address_of(self._settings, url), notice=notice)

    def __repr__(self) -> str:
        return f"<Client of {self._settings.home}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The next request opens another one."""
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

    def send(self, call: Call[R]) -> R:
        """The answer to a request of `calls.py`."""
        try:
            response = self._exchange(call)
        except NotRunning:
            if not self._settings.autostart:
                raise
            starter.start(self._settings, self._transport, self._notice)  # nothing was sent yet
            response = self._exchange(call)
        return call.result(response)

    def _exchange(self, call: Call[R]) -> bytes:
        return self._transport.exchange(call.method, call.body, timeout=call.timeout, repeatable=call.repeatable)
