"""The HTTP front door: sockets, routes, and the life of the server. It runs on the loop of whoever starts it.

No signal is touched, nothing ticks, and nothing is unlinked behind the owner's back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from http import HTTPStatus

import msgspec

from semtask.api import framing, guard, listeners
from semtask.api.acceptor import Acceptor
from semtask.api.access import Access, Credentials, Grants, no_grants
from semtask.api.connection import Connection, ConnectionState
from semtask.api.framing import Serializer
from semtask.api.guard import Endpoint
from semtask.api.limits import HttpLimits
from semtask.api.messages import Head, Refused, Response, no_descriptors, too_many
from semtask.api.methods import Caller, Operations, Responder
from semtask.api.pool import ConnectionPool
from semtask.api.rate import RateLimit
from semtask.api.routes import Request, Route, RouteTable
from semtask.config.settings import Settings
from semtask.engine.waits import Waiter
from semtask.errors import SemtaskError, StartupError, Throttled
from semtask.host import isolation, linux, peers
from semtask.model.sandbox import SandboxLevel
from semtask.model.scope import Scope
from semtask.telemetry.events import Events
from semtask.telemetry.metrics import CONTENT_TYPE

log = logging.getLogger("semtask.api")

_CLOSE_GRACE_S = 5.0
_PIPELINES_AT_ONCE = 4
_READ_BYTES = 128 * 1024


class RpcServer:
    """JSON-RPC on `<home>/run/rpc.sock`, and on 127.0.0.1 if the settings say so.

    `grants` finds what the token of a running job may do.

    `ready` raises if the daemon cannot work now: its message is the answer of /readyz; else it may have something to
    say all the same. `short` is called while there is no descriptor for another connection. `metrics` is what /metrics
    answers. `routes` are served beside its own ones. The caller of `start` holds the lock of the home.
    """

    def __init__(
        self,
        settings: Settings,
        operations: Operations,
        *,
        ready: Callable[[], Awaitable[str | None]],
        metrics: Callable[[], Awaitable[bytes]],
        events: Events,
        version: str,
        grants: Grants = no_grants,
        limits: HttpLimits | None = None,
        routes: Sequence[Route] = (),
        short: Callable[[str], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.limits = limits or HttpLimits(settings.max_body_bytes)
        self.serializer = Serializer(version.encode())
        self.held_bytes = 0
        self.streams = 0
        self.reads = memoryview(bytearray(_READ_BYTES))
        self.pipelines = asyncio.Semaphore(_PIPELINES_AT_ONCE)
        self._monotonic = monotonic
        self._rate = RateLimit(settings.rate_limit_requests, monotonic)
        self._now_ms = now_ms
        self.tcp_port: int | None = None
        self._settings = settings
        self._grants = grants
        self._ready = ready
        self._short = short
        self._metrics = metrics
        self._responder = Responder(operations, version=version, events=events)
        self._own_uid = os.geteuid()
        # Where Landlock is not available, no job is confined by it either.
        self._tells_confined = not isolation.why_not(SandboxLevel.LANDLOCK, daemon_confined=linux.has_no_new_privs())
        self._acceptors: list[Acceptor] = []
        self._unix: tuple[int, int] | None = None
        self._unix_endpoint = Endpoint()
        self._token_file: listeners.TokenFile | None = None
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self.pool = ConnectionPool(_connection_cap(settings.max_connections), monotonic)
        self._routes = RouteTable([*self._own_routes(), *routes])

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind and listen. Raises StartupError, and has bound nothing then."""
        try:
            guarded = self._settings.tcp_auth == "token"
            if self._settings.tcp and guarded:
                self._token_file = listeners.TokenFile(self._settings.token_file)
            token = self._token_file.token if self._token_file else None
            credentials = Credentials(token, self._settings.home, self._now_ms, self._grants)
            self._unix_endpoint = Endpoint(None, credentials)
            self._listen(listeners.listen_unix(self._settings.socket), self._unix_endpoint)
            self._unix = listeners.identity(self._settings.socket)
            if self._settings.tcp:
                sock = listeners.listen_tcp(self._settings.rpc_port)
                self.tcp_port = sock.getsockname()[1]
                self._listen(sock, Endpoint(self.tcp_port, credentials if guarded else None, needed=guarded))
        except BaseException:
            await self.close()
            raise

    def stay_reachable(self) -> bool:
        """Make the socket and the token file again where somebody has deleted them; whether there was need.

        Open connections stay. Raises StartupError if it cannot be: something else is in the way.
        """
        if self._unix is None:  # closed
            return False
        if self._token_file is not None:
            self._token_file.restore()
        try:
            if listeners.identity(self._settings.socket) == self._unix:
                return False
            what = "was replaced"
        except (FileNotFoundError, NotADirectoryError):
            what = "is gone"
        if listeners.is_passed(self._unix):
            raise StartupError(f"{self._settings.socket} {what}, and only systemd, which opened it, can make it again")
        sock = listeners.listen_unix(self._settings.socket)
        self._unix = listeners.identity(self._settings.socket)
        self._acceptors.pop(0).close()
        self._acceptors.insert(0, self._acceptor(sock, self._unix_endpoint))
        return True

    def drain(self, retry_after_s: int = 5) -> None:
        """Refuse new work (enqueue, enqueue_many) with 503 and Retry-After; /readyz says 503.

        Looking, waiting, reading logs, cancelling, pausing and configuring go on until `close`.
        """
        self._responder.drain(retry_after_s)

    async def close(self) -> None:
        """Listen no more, let the requests in work end for a few seconds, give up waits, close all connections."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        if self._unix is not None:
            listeners.remove_unix(self._settings.socket, self._unix)
            self._unix = None
        self.tcp_port = None
        for connection in self.pool:
            connection.close()
        try:
            async with asyncio.timeout(_CLOSE_GRACE_S):
                await self._all_closed.wait()
        except TimeoutError:
            for connection in self.pool:
                connection.abort()
            await self._all_closed.wait()

    def _listen(self, sock: socket.socket, endpoint: Endpoint) -> None:
        self._acceptors.append(self._acceptor(sock, endpoint))

    def _acceptor(self, sock: socket.socket, endpoint: Endpoint) -> Acceptor:
        refused = framing.refusal(no_descriptors())
        assert isinstance(refused.body, bytes)
        refusal = self.serializer.whole(refused, refused.body, keep_alive=False)
        return Acceptor(sock, lambda: Connection(self, endpoint), refusal=refusal, short=self._short)

    # --- connections -----------------------------------------------------------------------------------------------

    def opened(self, connection: Connection, transport: asyncio.Transport, caller: Caller, endpoint: Endpoint) -> None:
        sock = transport.get_extra_info("socket")
        peer = peers.peer_of(sock) if endpoint.port is None else peers.Peer(0, self._own_uid)
        pid, uid = peer
        caller.pid = pid
        self.pool.enter(connection, pid)
        self._all_closed.clear()
        guard.check_peer(uid, self._own_uid)
        try:
            caller.confined = self._tells_confined and endpoint.port is None and peers.is_confined(sock, peer)
        except OSError:
            raise no_descriptors() from None
        if self.pool.overfull:
            victim = self.pool.least_missed(pid)
            if victim is None:
                raise too_many("connections")
            victim.evict()
        self.pool.set_state(connection, ConnectionState.IDLE)

    def set_state(self, connection: Connection, state: ConnectionState) -> None:
        self.pool.set_state(connection, state)

    def closed(self, connection: Connection) -> None:
        self.pool.leave(connection)
        if not len(self.pool):
            self._all_closed.set()

    # --- requests --------------------------------------------------------------------------------------------------

    def _own_routes(self) -> list[Route]:
        return [
            Route(b"POST", b"/rpc", self._rpc, metered=True),
            Route(b"POST", b"/", self._rpc, metered=True),
            Route(b"GET", b"/healthz", self._health),
            Route(b"GET", b"/health", self._health),
            Route(b"GET", b"/readyz", self._readiness),
            Route(b"GET", b"/metrics", self._scrape, Scope.READ, "reading the metrics"),
        ]

    def admit(self, head: Head, endpoint: Endpoint, caller: Caller) -> tuple[Route, Access]:
        admitted = route, access = guard.check_head(
            head, endpoint, self._routes, self.limits.max_body_bytes, confined=caller.confined
        )
        if route.metered:
            try:
                self._rate.admit(access.token or caller.pid)
            except Refused as refused:
                if not self._is_small(head) or not isinstance(refused.error, Throttled):
                    raise
                return route, replace(access, throttled=refused.error)
        return admitted

    def _is_small(self, head: Head) -> bool:
        """Whether the body is announced to be so small that it is read although nothing of it will be done."""
        lengths = head.values(b"content-length")
        return bool(lengths) and int(lengths[0][:20]) <= self.limits.small_body_bytes

    async def respond(self, request: Request, caller: Caller) -> Response:
        if request.access.throttled is not None:
            return self._throttled(request, request.access.throttled)
        return await request.route.handler(request, caller)

    def _throttled(self, request: Request, error: Throttled) -> Response:
        wait_s = math.ceil((error.retry_after_ms or 0) / 1000)
        refusal = self._responder.refusal(request.body, error)
        return Response(HTTPStatus.OK, refusal, [(b"retry-after", b"%d" % wait_s)])

    async def _rpc(self, request: Request, caller: Caller) -> Response:
        access = request.access
        waiter = _waiter(request.head, caller.pid)
        answer = await self._responder.answer(request.body, caller, access, waiter)
        self._rate.charge(access.token or caller.pid, answer.calls - 1)
        if answer.refused:
            headers = [(b"retry-after", b"%d" % (self._responder.retry_after_s or 0))]
            return Response(HTTPStatus.SERVICE_UNAVAILABLE, answer.body or b"", headers)
        if answer.body is None:
            return Response(HTTPStatus.NO_CONTENT)
        return Response(HTTPStatus.OK, answer.body)

    async def _health(self, _request: Request, _caller: Caller) -> Response:
        return Response(HTTPStatus.OK, _json({"status": "ok"}))

    async def _readiness(self, _request: Request, _caller: Caller) -> Response:
        if self._responder.retry_after_s is not None:
            return _unavailable("the daemon is stopping")
        try:
            detail = await self._ready()
        except Exception as error:  # noqa: BLE001 - answered, and logged where it is a fault
            return _unavailable(_why("the check of readiness", error))
        return Response(HTTPStatus.OK, _json({"status": "ready", **({"detail": detail} if detail else {})}))

    async def _scrape(self, _request: Request, _caller: Caller) -> Response:
        try:
            return Response(HTTPStatus.OK, await self._metrics(), content_type=CONTENT_TYPE)
        except Exception as error:  # noqa: BLE001 - answered, and logged where it is a fault
            return _unavailable(_why("reading the metrics", error))


def _waiter(head: Head, pid: int) -> Waiter:
    """`semtask-attempt: ATTEMPT [JOB_ID]`, as the environment of a job names them."""
    attempt, _, job_id = b"".join(head.values(b"semtask-attempt")[:1]).decode("latin-1").partition(" ")
    return Waiter(attempt, job_id.strip(), pid)


def _connection_cap(wanted: int) -> int:
    """Connections take half of the file descriptors at most: the rest is for logs, pidfds and the database."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if descriptors == resource.RLIM_INFINITY else min(wanted, descriptors // 2)


def _why(what: str, error: Exception) -> str:
    if isinstance(error, SemtaskError):
        return error.message
    log.error("%s failed", what, exc_info=error)
    return f"{what} failed; the log of the daemon says why"


def _unavailable(reason: str) -> Response:
    return Response(HTTPStatus.SERVICE_UNAVAILABLE, _json({"status": "unavailable", "reason": reason}))


def _json(value: dict[str, str]) -> bytes:
    return msgspec.json.encode(value)
