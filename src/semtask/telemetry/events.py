"""What the engine tells about itself: events, to which exporters attach by type, and levels, which they may read.

An event is emitted after the fact that it reports. It can never break a job: an exporter that raises is logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from semtask.model.disk import DiskState
from semtask.model.job import ExecutionMode, Job
from semtask.model.retry import Decision
from semtask.model.state import EndCause, State

log = logging.getLogger("semtask.telemetry")

E = TypeVar("E")


class JobsEnqueued(msgspec.Struct, frozen=True):
    """`count` new jobs of one kind were stored in one commit."""

    queue: str
    task: str
    kind: ExecutionMode
    count: int


class JobsEnded(msgspec.Struct, frozen=True):
    """`count` jobs reached their end in one commit."""

    queue: str
    task: str
    outcome: EndCause
    count: int


class JobsRetried(msgspec.Struct, frozen=True):
    """`count` jobs failed and wait for their next attempt."""

    queue: str
    task: str
    count: int


class AttemptStarted(msgspec.Struct, frozen=True):
    """A claim is committed, and its job handed to the executor."""

    job: Job


class AttemptEnded(msgspec.Struct, frozen=True):
    """The end of an attempt is committed. `job` is the row as it was claimed, `decision` what became of it.

    `ran_s` is None where the beginning was seen by a former daemon, or nothing was executed.
    """

    job: Job
    decision: Decision
    ran_s: float | None


class Committed(msgspec.Struct, frozen=True):
    """A write was acknowledged by the store this long after it was asked for (seconds)."""

    seconds: float


class RequestAnswered(msgspec.Struct, frozen=True):
    """`method` is None if there is no such method; `code` is the error's, 0 for a result."""

    method: str | None
    code: int
    seconds: float


Hold: TypeAlias = Literal["host_busy", "no_room", "store", "policy"]
"""Why jobs are held back: the machine is busy (background work only), it has no room for another process, or the
database cannot be written."""


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """What an exporter reads when it is asked: kept counts and sizes, nothing that needs counting.

    `jobs` by queue and state; `oldest_ready_s` (seconds) by queue, where a job waits that could run; `counters` are the
    persistent ones; `holds` are in force now; `disk_free_bytes` is None where it is not known.
    """

    jobs: Mapping[str, Mapping[State, int]]
    oldest_ready_s: Mapping[str, float]
    counters: Mapping[str, int]
    db_size_bytes: int
    db_wal_bytes: int
    holds: Collection[Hold] = ()
    disk_state: DiskState = DiskState.OK
    disk_free_bytes: int | None = None


class Events:
    """Passes every event to the handlers of its type, immediately and in the order in which they attached."""

    def __init__(self) -> None:
        self._handlers: dict[type, list[Callable[[Any], None]]] = {}
        self._failed: set[Callable[[Any], None]] = set()

    def attach(self, event_type: type[E], handler: Callable[[E], None]) -> None:
        self._handlers.setdefault(event_type, []).append(handler)

    def emit(self, event: object) -> None:
        """Never raises; handlers must be quick, they run on the event loop."""
        for handler in self._handlers.get(type(event), ()):
            try:
                handler(event)
            except Exception:
                if handler not in self._failed:
                    self._failed.add(handler)
                    log.exception("an exporter failed on %s; it is not logged again", type(event).__name__)
