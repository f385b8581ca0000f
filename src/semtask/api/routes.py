"""The table of routes: which paths there are, with which method, for whom, and who answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

from semtask.api.access import Access
from semtask.api.messages import Head, Refused, Response
from semtask.api.methods import Caller
from semtask.errors import InvalidRequest
from semtask.model.scope import Scope


class Request(NamedTuple):
    """A request that was admitted and has been read."""

    head: Head
    route: Route
    access: Access
    body: bytes
    keep_alive: bool


Handler = Callable[[Request, Caller], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """A path and a method of it.

    A token needs `scope`, if there is one, for `purpose`, which begins the message of the error. A `metered` route
    counts for the rate limit of the client.
    """

    method: bytes
    path: bytes
    handler: Handler
    scope: Scope | None = None
    purpose: str = ""
    metered: bool = False

    def check(self, access: Access) -> None:
        """Raises Unauthorized unless the client may use this route at all."""
        if self.scope is not None:
            access.require(self.scope, self.purpose or f"{self.method.decode()} {self.path.decode()}")


class RouteTable:
    """Raises ValueError if two routes are the same."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: dict[bytes, dict[bytes, Route]] = {}
        for route in routes:
            methods = self._routes.setdefault(route.path, {})
            if route.method in methods:
                raise ValueError(f"there are two routes for {route.method.decode()} {route.path.decode()}")
            methods[route.method] = route

    def find(self, head: Head) -> Route:
        """Raises Refused: 404 for an unknown path, 405 for a method that the path does not have."""
        methods = self._routes.get(head.path)
        if methods is None:
            raise Refused(HTTPStatus.NOT_FOUND, InvalidRequest("There is nothing here. The API is at POST /rpc."))
        route = methods.get(head.method)
        if route is None:
            allowed = b", ".join(methods)
            error = InvalidRequest(f"Only {allowed.decode()} is allowed here.")
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, error, [(b"allow", allowed)])
        return route
