"""The requests of the command line and their answers, which are typed as the structs of `protocol/`.

They are read without msgspec: to import it and the structs takes longer than all that a command does otherwise. The
type checker sees `JobView`; what is there at run time is a `Message`, which has its fields. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from semtask.protocol.admin import Maintained, Stats
    from semtask.protocol.apps import Apps, Tasks, Workers
    from semtask.protocol.enqueue import Enqueued
    from semtask.protocol.jobs import Cancelled, JobView, QueriedJobs, Retried, Waited
    from semtask.protocol.logs import TailedChunk
    from semtask.protocol.queues import Queues, QueueView

R = TypeVar("R")

# Fields that hold any JSON, or a mapping with keys that are no fields; tests compare them with the structs.
PLAIN = frozenset({"payload", "result", "parameters", "returns", "defaults", "counters", "refused"})


class Message:
    """An object of an answer. A field that the daemon does not send, as it is of an older version, is None."""

    __slots__ = ("_json",)

    def __init__(self, json: dict[str, Any]) -> None:
        self._json = json

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = self._json.get(name.rstrip("_"))  # `class_`, as `class` is a word of Python
        return value if name in PLAIN else _typed(value)

    def __repr__(self) -> str:
        return f"Message({self._json!r})"


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return Message(value)
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return value


def json_of(answer: object) -> dict[str, Any]:
    """What the daemon sent, with fields that only a newer version knows."""
    assert isinstance(answer, Message)
    return answer._json


class Request(NamedTuple, Generic[R]):
    """A request of one method. `wait_ms`: how long the daemon may take over it."""

    method: str
    params: Mapping[str, Any]
    wait_ms: int = 0


class Sender(Protocol):
    """Sends a request and returns its answer. Raises the errors of `Client`."""

    def __call__(self, request: Request[R], /) -> R: ...


class AsyncSender(Protocol):
    """The same for asyncio."""

    async def __call__(self, request: Request[R], /) -> R: ...


class Method(Generic[R]):
    """A method of the API: called with its parameters it is a request that is answered with R.

    `waits` names the parameter that says how long the daemon waits before it answers; `limit_ms` is how long it works.
    """

    def __init__(self, name: str, *, waits: str = "", limit_ms: int = 0) -> None:
        self.name = name
        self._waits = waits
        self._limit_ms = limit_ms

    def __call__(self, **params: Any) -> Request[R]:
        return Request(self.name, params, self._limit_ms + params.get(self._waits, 0))


ENQUEUE: Method[Enqueued] = Method("dev.enqueue.v1")
GET_JOB: Method[JobView] = Method("dev.get_job.v1")
QUERY_JOBS: Method[QueriedJobs] = Method("dev.query_jobs.v1")
WAIT: Method[Waited] = Method("dev.wait.v1", waits="timeout_ms")
TAIL: Method[TailedChunk] = Method("logs.tail.v1", waits="wait_ms")
CANCEL: Method[Cancelled] = Method("dev.cancel.v1")
RETRY: Method[Retried] = Method("dev.retry.v1")
LIST_APPS: Method[Apps] = Method("apps.list.v1")
RELOAD_APPS: Method[Apps] = Method("apps.reload.v1", waits="wait_ms")
LIST_TASKS: Method[Tasks] = Method("tasks.list.v1")
LIST_WORKERS: Method[Workers] = Method("workers.list.v1")
LIST_QUEUES: Method[Queues] = Method("queues.list.v1")
PAUSE_QUEUE: Method[QueueView] = Method("queues.pause.v1")
RESUME_QUEUE: Method[QueueView] = Method("queues.resume.v1")
CONFIGURE_QUEUE: Method[QueueView] = Method("queues.configure.v1")
STATS: Method[Stats] = Method("admin.stats.v1")
MAINTENANCE: Method[Maintained] = Method("admin.maintenance.v1", limit_ms=600_000)
