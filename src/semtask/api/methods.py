"""From the bytes of a request body to the engine's operations and back, by the table METHODS."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from msgspec import UNSET, UnsetType

from semtask.api.access import Access, require_for
from semtask.api.parameters import ParameterReader
from semtask.engine.waits import NOBODY, Waiter
from semtask.errors import InternalError, MethodNotFound, RpcError, Throttled, suggestion
from semtask.model.scope import Scope
from semtask.model.trace_context import new_trace_id
from semtask.protocol import jsonrpc, openrpc
from semtask.protocol.admin import Maintained, MaintenanceParams, StartDaemonParams, StartedDaemon, Stats
from semtask.protocol.enqueue import Enqueued, EnqueuedMany, EnqueueManyParams, EnqueueParams
from semtask.protocol.fields import NoParams
from semtask.protocol.jobs import (
    Cancelled,
    CancelParams,
    GetJobParams,
    JobView,
    QueriedJobs,
    QueryJobsParams,
    Retried,
    RetryParams,
    Waited,
    WaitParams,
)
from semtask.protocol.logs import TailedChunk, TailedLines, TailParams
from semtask.protocol.methods import METHODS, Method
from semtask.protocol.queues import ConfigureQueueParams, QueueParams, Queues, QueueView
from semtask.telemetry.events import Events, RequestAnswered

log = logging.getLogger("semtask.api")

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_NO_ROOM_MS = 200


class Operations(Protocol):
    """What the engine offers: one operation per method of the API. Each raises classes of `semtask.errors`."""

    async def enqueue(self, params: EnqueueParams) -> Enqueued: ...
    async def enqueue_many(self, params: EnqueueManyParams) -> EnqueuedMany: ...
    async def get_job(self, params: GetJobParams) -> JobView: ...
    async def query_jobs(self, params: QueryJobsParams) -> QueriedJobs: ...
    async def wait(self, params: WaitParams, waiter: Waiter) -> Waited: ...
    async def cancel(self, params: CancelParams) -> Cancelled: ...
    async def retry(self, params: RetryParams, scopes: frozenset[Scope]) -> Retried: ...
    async def tail(self, params: TailParams, waiter: Waiter) -> TailedLines | TailedChunk: ...
    async def list_queues(self, params: NoParams) -> Queues: ...
    async def pause_queue(self, params: QueueParams) -> QueueView: ...
    async def resume_queue(self, params: QueueParams) -> QueueView: ...
    async def configure_queue(self, params: ConfigureQueueParams) -> QueueView: ...
    async def stats(self, params: NoParams) -> Stats: ...
    async def maintenance(self, params: MaintenanceParams) -> Maintained: ...
    async def start_daemon(self, params: StartDaemonParams) -> StartedDaemon: ...


class Caller:
    """The other end of a connection. When it leaves, what only waits for its sake is given up; changes go on.

    `on_wait` is told when a wait begins and when it has ended.
    """

    def __init__(self, on_wait: Callable[[bool], None] = lambda _: None) -> None:
        self._on_wait = on_wait
        self.pid = 0  # of the process at a unix socket
        self.confined = False  # by a sandbox, ours or another one: nobody's own rights come with it
        self.gone = False  # nobody will see an answer
        self._left = False
        self._waiting: asyncio.Task[Any] | None = None

    @property
    def waiting(self) -> bool:
        return self._waiting is not None

    def leave(self) -> None:
        """Give up the present wait, and any later one."""
        self._left = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def wait(self, operation: Coroutine[Any, Any, Any]) -> Any:
        """The result of an operation that only waits. Raises Throttled once the caller has left."""
        self._waiting = asyncio.ensure_future(operation)
        self._on_wait(True)
        if self._left:
            self._waiting.cancel()
        try:
            return await self._waiting
        except asyncio.CancelledError:
            if not self._left:
                raise
            raise Throttled("The wait was given up: the connection is closing.", retry_after_ms=1000) from None
        finally:
            self._waiting = None
            self._on_wait(False)


class Answer(NamedTuple):
    """`body` is None if there were only notifications. `refused`: nothing in it was done, the daemon is stopping."""

    body: bytes | None
    refused: bool = False
    calls: int = 1


class _Route(NamedTuple):
    method: Method
    reader: ParameterReader
    operation: Callable[..., Coroutine[Any, Any, Any]]


class Responder:
    """Answers request bodies: reads the calls in them, has the operations execute them, and writes the responses."""

    def __init__(
        self,
        operations: Operations,
        *,
        version: str,
        events: Events,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._routes = {
            method.name: _Route(
                method,
                ParameterReader(method),
                getattr(operations, method.operation) if method.operation else self._discover,
            )
            for method in METHODS.values()
        }
        self._version = version
        self._events = events
        self._random_bytes = random_bytes
        self._monotonic = monotonic
        self._stopping: Throttled | None = None
        self.retry_after_s: int | None = None  # while draining

    def drain(self, retry_after_s: int) -> None:
        """From now on refuse new work (`Method.new_work`). Looking, waiting, cancelling and pausing go on."""
        self.retry_after_s = retry_after_s
        self._stopping = Throttled("The daemon is stopping and takes no new work.", retry_after_ms=retry_after_s * 1000)

    def refusal(self, body: bytes, error: RpcError) -> bytes:
        """The answer to a request of which nothing is done."""
        try:
            message = jsonrpc.read(body)
        except RpcError as unreadable:
            return jsonrpc.failure(None, unreadable)
        for _ in message.calls:
            self._events.emit(RequestAnswered(None, error.code, 0))
        ids = [call.id for call in message.calls if not isinstance(call.id, UnsetType)]
        failures = [jsonrpc.failure(request_id, error) for request_id in ids]
        if not failures:
            return jsonrpc.failure(None, error)  # whoever wants no answer is told all the same
        return jsonrpc.batch(failures) if message.is_batch else failures[0]

    async def answer(self, body: bytes, caller: Caller, access: Access, waiter: Waiter = NOBODY) -> Answer:
        """Execute what the body asks for, in order. Raises nothing but CancelledError."""
        try:
            message = jsonrpc.read(body)
        except RpcError as error:
            self._events.emit(RequestAnswered(None, error.code, 0))
            return Answer(jsonrpc.failure(None, error))
        responses: list[bytes] = []
        refused = 0
        for call in message.calls:
            response, was_refused = await self._answer_one(call, caller, access, waiter)
            refused += was_refused
            if response is not None:
                responses.append(response)
        if not responses:
            return Answer(None, refused == len(message.calls), len(message.calls))
        return Answer(
            jsonrpc.batch(responses) if message.is_batch else responses[0],
            refused == len(message.calls),
            len(message.calls),
        )

    async def _answer_one(
        self, call: jsonrpc.Call | jsonrpc.BadCall, caller: Caller, access: Access, waiter: Waiter
    ) -> tuple[bytes | None, bool]:
        if isinstance(call, jsonrpc.BadCall):
            self._events.emit(RequestAnswered(None, call.error.code, 0))
            return jsonrpc.failure(call.id, call.error), False
        asked = self._monotonic()
        request_id = None if call.id is UNSET else call.id
        refusal: RpcError | None = None
        try:
            response = jsonrpc.success(request_id, await self._execute(call, caller, access, waiter))
        except Exception as error:  # noqa: BLE001 - the caller gets an answer, the log gets the traceback
            refusal = _no_room(error)
            if refusal is None:
                refusal = self._traced(call, error) if isinstance(error, RpcError) else self._unexpected(call, error)
            response = jsonrpc.failure(request_id, refusal)
        method = call.method if call.method in self._routes else None
        self._events.emit(RequestAnswered(method, refusal.code if refusal else 0, self._monotonic() - asked))
        return None if call.id is UNSET else response, refusal is not None and refusal is self._stopping

    async def _execute(self, call: jsonrpc.Call, caller: Caller, access: Access, waiter: Waiter) -> Any:
        route = self._routes.get(call.method)
        if route is None:
            name = call.method[:128]
            raise MethodNotFound(f"There is no method {name!r}{suggestion(name, METHODS)}.")
        access.require(route.method.scope, route.method.name)
        if route.method.new_work and self._stopping is not None:
            raise self._stopping
        if caller.gone and route.method.scope is Scope.READ:
            raise Throttled("The client has gone.", retry_after_ms=1000)
        params = route.reader.read(call.params)
        require_for(params, access)
        told = [access.scopes] if route.method.told_scopes else [waiter] if route.method.told_waiter else []
        operation = route.operation(params, *told)
        return await (caller.wait(operation) if route.method.waits else operation)

    async def _discover(self, _params: NoParams) -> dict[str, Any]:
        return openrpc.document(self._version)

    def _traced(self, call: jsonrpc.Call, error: RpcError) -> RpcError:
        """The error with a trace id, and an entry in the log, if it is the daemon's own fault."""
        if error.code >= InternalError.code and error.trace_id is None:
            error.trace_id = new_trace_id(self._random_bytes)
            log.error("%s failed (trace id %s)", call.method, error.trace_id, exc_info=error, extra=_under(error))
        return error

    def _unexpected(self, call: jsonrpc.Call, error: Exception) -> InternalError:
        answer = InternalError(trace_id=new_trace_id(self._random_bytes))
        log.error("%s failed (trace id %s)", call.method, answer.trace_id, exc_info=error, extra=_under(answer))
        return answer


def _no_room(error: Exception) -> Throttled | None:
    """The error for a file or process that the daemon could not open, whatever was made of it: try again later."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            text = f"The daemon cannot open another file or process now: {cause.strerror}. Try again later."
            return Throttled(text, retry_after_ms=_NO_ROOM_MS)
        cause = cause.__cause__
    return None


def _under(error: RpcError) -> dict[str, object]:
    return {"trace_id": error.trace_id}
