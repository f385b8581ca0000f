"""What the engine tells its exporters about jobs: commits as events, and on demand the levels of this moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from semtask.model.disk import DiskState
from semtask.model.job import ExecutionMode
from semtask.model.state import EndCause, State
from semtask.protocol.admin import DiskView
from semtask.store.base import Change, Store
from semtask.telemetry.counters import RETRY_COUNT
from semtask.telemetry.events import Events, Hold, JobsEnded, JobsEnqueued, JobsRetried, Levels


class Reporting:
    """`count` adds to a persistent counter; `holds` says why jobs are held back now; `wal_bytes` is the size of the
    write-ahead log, `disk` how the disk is.
    """

    def __init__(
        self,
        store: Store,
        events: Events,
        *,
        now_ms: Callable[[], int],
        count: Callable[[str, int], None],
        holds: Callable[[], Collection[Hold]],
        wal_bytes: Callable[[], int],
        disk: Callable[[], DiskView],
    ) -> None:
        self._store = store
        self._events = events
        self._now_ms = now_ms
        self._count = count
        self._holds = holds
        self._wal_bytes = wal_bytes
        self._disk = disk

    def on_changes(self, changes: Sequence[Change]) -> None:
        """A commit may hold thousands of jobs, and they are much alike: only their number is reported."""
        enqueued: Counter[tuple[str, str, ExecutionMode]] = Counter()
        ended: Counter[tuple[str, str, EndCause]] = Counter()
        retried: Counter[tuple[str, str]] = Counter()
        for change in changes:
            if change.before is None:
                enqueued[change.queue, change.job_type, change.execution_mode] += 1
            elif change.end_cause is not None:
                ended[change.queue, change.job_type, change.end_cause] += 1
            elif change.before is State.RUNNING and change.after is State.SCHEDULED:
                retried[change.queue, change.job_type] += 1
        for (queue, task, kind), count in enqueued.items():
            self._events.emit(JobsEnqueued(queue, task, kind, count))
        for (queue, task, outcome), count in ended.items():
            self._events.emit(JobsEnded(queue, task, outcome, count))
        for (queue, task), count in retried.items():
            self._events.emit(JobsRetried(queue, task, count))
        if retried:
            self._count(RETRY_COUNT, retried.total())

    async def levels(self) -> Levels:
        oldest, now = await self._store.oldest_ready(), self._now_ms()
        disk = self._disk()
        return Levels(
            jobs={row.name: row.counts for row in await self._store.queues()},
            # 0 after the clock was set back.
            oldest_ready_s={queue: max(now - since, 0) / 1000 for queue, since in oldest.items()},
            counters=await self._store.counters(),
            db_size_bytes=await self._store.size_bytes(),
            db_wal_bytes=self._wal_bytes(),
            holds=self._holds(),
            disk_state=DiskState(disk.state),
            disk_free_bytes=disk.free_bytes,
        )
