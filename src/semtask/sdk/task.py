"""A task: a function that can be called as usual, and enqueued as a job."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload

import msgspec

from semtask.client import calls
from semtask.client.calls import Call
from semtask.model.job import ExecutionMode
from semtask.protocol.enqueue import Enqueued, EnqueueParams
from semtask.protocol.jobs import JobView
from semtask.sdk.connection import Connection
from semtask.sdk.handle import JobHandle
from semtask.sdk.keywords import EnqueueOptions
from semtask.sdk.naming import Unreachable
from semtask.sdk.options import JobOptions
from semtask.sdk.results import result_of
from semtask.tasks.registry import TaskDefinition

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call, ready for `enqueue_many`."""

    payload: bytes


class _Enqueueing(Generic[P, R]):
    """What `Task` and `AsyncTask` have in common: all but the call."""

    def __init__(self, definition: TaskDefinition, connection: Connection, options: JobOptions) -> None:
        self.definition = definition
        self._connection = connection
        self._options = options
        self._function = definition.function
        self._encode = definition.signature.encode_arguments
        functools.update_wrapper(cast(Callable[..., Any], self), definition.function)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __reduce__(self) -> str:
        return self.__qualname__  # type: ignore[attr-defined,no-any-return]  # as its function is pickled: by its name

    @property
    def name(self) -> str:
        """Its job_type: `module:qualname`, unless it was named."""
        return self.definition.name

    def using(self, **options: Unpack[EnqueueOptions]) -> Self:
        """The same task whose jobs are enqueued with these options.

        Raises TypeError for an unknown option, ValueError for a wrong value.
        """
        return type(self)(self.definition, self._connection, self._options.using(**options))

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """Store a job that calls the task with these arguments; once this returns, it survives any crash.

        Raises EncodeError (a TypeError) for an argument that is not of its annotated type or no JSON, ValueError for a
        function that no worker could import, Conflict for a duplicate that is refused and for a name that is that of
        another project's task, DaemonUnavailable. If the connection broke before the answer came, the job may be
        stored or not: with an `idempotency_key` the request is repeated by itself and makes one job.
        """
        return self._handle(self._connection.send(self._call(args, kwargs)))

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        return self._handle(await self._connection.asend(self._call(args, kwargs)))

    def args(self, /, *args: P.args, **kwargs: P.kwargs) -> Arguments:
        """The arguments of one call for `enqueue_many`, checked as those of `enqueue` are."""
        return Arguments(self._encode(args, kwargs))

    def enqueue_many(self, calls: Iterable[Arguments | tuple[Any, ...] | Mapping[str, Any]]) -> list[JobHandle[R]]:
        """Store up to 10,000 jobs in one transaction, all or none, and return their handles in this order.

        A call is `task.args(...)`, a tuple of positional arguments, or a mapping of arguments by name.
        """
        many = self._many(calls)
        return [] if many is None else [self._handle(job) for job in self._connection.send(many)]

    async def aenqueue_many(
        self, calls: Iterable[Arguments | tuple[Any, ...] | Mapping[str, Any]]
    ) -> list[JobHandle[R]]:
        many = self._many(calls)
        return [] if many is None else [self._handle(job) for job in await self._connection.asend(many)]

    def handle(self, job_id: str) -> JobHandle[R]:
        """A job of this task that was enqueued elsewhere or earlier. Nothing is asked for yet."""
        return JobHandle(self._connection, job_id, self._read)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[Enqueued]:
        params = self._params(self._encode(args, kwargs), self._options.counted_from(self._connection.now_ms()))
        return Call("dev.enqueue.v1", params, _enqueued, has_key=self._options.has_key)

    def _many(self, given: Iterable[Any]) -> Call[list[Enqueued]] | None:
        options = self._options.counted_from(self._connection.now_ms())
        jobs = [self._params(self._payload(call), options) for call in given]
        return calls.enqueue_many(jobs) if jobs else None

    def _payload(self, call: Any) -> bytes:
        match call:
            case Arguments():
                return call.payload
            case tuple():
                return self._encode(call, {})
            case Mapping():
                return self._encode((), dict(call))
        raise TypeError(
            f"enqueue_many of {self.name} takes tuples of arguments, mappings by name, or task.args(...); not {call!r}"
        )

    def _params(self, payload: bytes, options: dict[str, Any]) -> EnqueueParams:
        if self.definition.unreachable is not None:
            raise Unreachable(self.definition.unreachable)
        return EnqueueParams(
            job_type=self.definition.name,
            payload=msgspec.Raw(payload),
            execution_mode=ExecutionMode.IN_PROCESS,
            source=self.definition.source,
            **options,
        )

    def _handle(self, job: Enqueued) -> JobHandle[R]:
        return JobHandle(self._connection, job.job_id, self._read, deduplicated=job.deduplicated)

    def _read(self, job: JobView) -> R:
        result: R = result_of(job, self.definition.signature.decode_result)
        return result


class Task(_Enqueueing[P, R]):
    """A task that is a plain function. Calling it calls the function, here and now."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)  # type: ignore[no-any-return]


class AsyncTask(_Enqueueing[P, R]):
    """A task that is a coroutine function. Calling it gives the coroutine, to be awaited here.

    `inspect` and `asyncio` see a coroutine function in it, too.
    """

    def __init__(self, definition: TaskDefinition, connection: Connection, options: JobOptions) -> None:
        super().__init__(definition, connection, options)
        if mark := getattr(inspect, "markcoroutinefunction", None):  # Python 3.12
            mark(self)
        # What inspect takes for a function has these; of its code it reads whether that is a coroutine's.
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            if hasattr(definition.function, name):
                setattr(self, name, getattr(definition.function, name))

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        return self._function(*args, **kwargs)  # type: ignore[no-any-return]


class TaskDecorator(Protocol):
    """What `app.task(...)` with options returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]  # the first one that fits is meant
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


_decode_enqueued = msgspec.json.Decoder(Enqueued).decode


def _enqueued(raw: msgspec.Raw) -> Enqueued:
    return _decode_enqueued(raw)
