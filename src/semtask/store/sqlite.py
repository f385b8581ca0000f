"""The store on one SQLite file. It meets the obligations of `store/base.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import structs

from semtask.model.job import Attempt, ExecutionMode, Job, NewJob, ProcessIdentity, ProgressNote, QueueClass
from semtask.model.sandbox import SandboxLevel
from semtask.model.state import State
from semtask.store import sqlite_claim as claims
from semtask.store import sqlite_finish as ends
from semtask.store import sqlite_reads as reads
from semtask.store import sqlite_stop as stopping
from semtask.store import sqlite_tasks as tasks
from semtask.store import sqlite_upkeep as upkeep
from semtask.store import sqlite_writes as writes
from semtask.store.base import OnCommit, StoreWatch
from semtask.store.requests import (
    ClaimRequest,
    Expired,
    Finish,
    Finished,
    Inserted,
    JobFilter,
    Page,
    Promoted,
    Purge,
    Purged,
    QueueRow,
    Stopped,
    StopRequest,
    TaskClaim,
    TaskClaimed,
)
from semtask.store.sqlite_damage import damaged_running, quarantine
from semtask.store.sqlite_file import SqliteFile
from semtask.store.sqlite_insert import insert
from semtask.store.sqlite_reads import Readers
from semtask.store.writer import Phase, Writer

# Deleted in one tick: a few milliseconds.
PURGE_ROWS = 250


async def open_store(
    path: Path,
    *,
    on_commit: OnCommit,
    now: Callable[[], int],
    fatal: Callable[[BaseException], None],
    disk_retry_s: float = 1.0,
) -> SqliteStore:
    """Open the database at `path` for work, or make it; brings the schema up to date. Raises StartupError.

    `now` gives epoch ms. `fatal` is called on the event loop when this daemon must not write any more: another one
    has opened the database since, or the disk has failed for long (DiskFailed). `disk_retry_s` is the pause between
    two tries on a full disk; on one that fails the pauses grow.
    """
    file = SqliteFile(path)
    db = await asyncio.to_thread(file.open, now())
    try:
        readers = await asyncio.to_thread(Readers, file.connect_reader)
    except BaseException:
        db.close()
        raise
    writer = Writer(file, db, on_commit=on_commit, fatal=fatal, retry_s=disk_retry_s)
    store = SqliteStore(file, writer, readers, now)
    try:
        await store.quarantine_running(now())
    except BaseException:
        await store.close()
        raise
    return store


class SqliteStore:
    def __init__(self, file: SqliteFile, writer: Writer, readers: Readers, now: Callable[[], int]) -> None:
        self.daemon_epoch = file.daemon_epoch
        self._file = file
        self._writer = writer
        self._readers = readers
        self._now = now
        self._purge_place = upkeep.Place()

    async def quarantine_running(self, now: int) -> None:
        """A running job whose row cannot be decoded cannot be judged: nobody else would ever end it."""
        if damaged := await self._readers.run(damaged_running):
            await self._writer.submit(
                lambda tick: [quarantine(tick, damage, now=now, before=State.RUNNING) for damage in damaged]
            )

    def report_to(self, watch: StoreWatch) -> None:
        self._writer.on_trouble = watch.trouble
        self._writer.on_damage = self._readers.on_damage = watch.damaged

    # --- writes ---

    async def insert(self, jobs: Sequence[NewJob], *, durable: bool) -> list[Inserted]:
        return await self._writer.submit(lambda tick: insert(tick, jobs), relaxed=not durable, rows=len(jobs))

    async def claim(self, request: ClaimRequest) -> list[Job]:
        return await self._writer.submit(
            # By the time of the tick: a finish may have come into it later than this request, and it goes first.
            lambda tick: claims.claim(tick, structs.replace(request, now=max(request.now, self._now()))),
            phase=Phase.CLAIM,
            relaxed=request.mode is ExecutionMode.IN_PROCESS,
            rows=request.limit,
        )

    async def claim_tasks(self, request: TaskClaim) -> TaskClaimed:
        """Ends with the first tick that sets jobs aside: the caller asks again, with what is offered by then.

        Ticks with the old ones would undo a `bring_back`, and both would go on forever.
        """
        while True:
            claimed, more = await self._writer.submit(
                lambda tick: tasks.claim_tasks(tick, structs.replace(request, now=max(request.now, self._now()))),
                phase=Phase.CLAIM,
                relaxed=True,
                rows=sum(taker.limit for taker in request.takers),
            )
            if any(claimed.jobs) or claimed.set_aside or not more:  # else there were only damaged rows
                return claimed

    async def bring_back(self, job_type: str, limit: int) -> int:
        """In several short ticks."""
        back = 0
        while back < limit:
            wanted = min(limit - back, tasks.MOVED)
            moved = await self._bring_back_step(job_type, wanted)
            back += moved
            if moved < wanted:
                break
        return back

    async def _bring_back_step(self, job_type: str, limit: int) -> int:
        return await self._writer.submit(lambda tick: tasks.bring_back(tick, job_type, limit), relaxed=True, rows=limit)

    async def record_progress(self, notes: Sequence[ProgressNote]) -> None:
        await self._writer.submit(lambda tick: tasks.record_progress(tick, notes), relaxed=True, rows=len(notes))

    async def record_process(self, job_id: str, claim_no: int, process: ProcessIdentity) -> bool:
        return await self._writer.submit(
            lambda tick: writes.record_process(tick, job_id, claim_no, process), relaxed=True
        )

    async def record_kill_failed(self, job_id: str, claim_no: int, at: int) -> bool:
        return await self._writer.submit(lambda tick: writes.record_kill_failed(tick, job_id, claim_no, at))

    async def finish(self, finish: Finish) -> Finished:
        return await self._writer.submit(lambda tick: ends.finish(tick, finish), phase=Phase.FINISH)

    async def finish_many(self, finishes: Sequence[Finish]) -> list[Finished]:
        return await self._writer.submit(
            lambda tick: ends.finish_many(tick, finishes), phase=Phase.FINISH, rows=len(finishes)
        )

    async def stop(self, request: StopRequest) -> Stopped:
        return await self._writer.submit(lambda tick: stopping.stop(tick, request))

    async def promote(self, now: int, limit: int) -> Promoted:
        return await self._writer.submit(lambda tick: writes.promote(tick, now, limit), relaxed=True, rows=limit)

    async def expire(self, now: int, limit: int) -> Expired:
        return await self._writer.submit(lambda tick: stopping.expire(tick, now, limit), rows=limit)

    async def configure_queue(
        self,
        name: str,
        *,
        paused: bool | None = None,
        concurrency: int | Literal["keep"] | None = "keep",
        queue_class: QueueClass | None = None,
        sandbox: SandboxLevel | None = None,
    ) -> QueueRow:
        settings = {
            "name": name,
            "paused": paused,
            "concurrency": None if concurrency == "keep" else concurrency,
            "keep_concurrency": concurrency == "keep",
            "queue_class": queue_class,
            "sandbox": sandbox,
        }
        await self._writer.submit(lambda tick: writes.configure_queue(tick, settings))
        # Read after the commit: the counts of a tick are brought up to date at its end.
        return next(queue for queue in await self.queues() if queue.name == name)

    async def count(self, increments: Mapping[str, int]) -> None:
        await self._writer.submit(lambda tick: writes.count(tick, increments))

    # --- reads ---

    async def get(self, job_id: str) -> Job | None:
        return await self._readers.run(lambda db: reads.get(db, job_id))

    async def get_many(self, job_ids: Sequence[str]) -> dict[str, Job]:
        return await self._readers.run(lambda db: reads.get_many(db, job_ids))

    async def attempts(self, job_id: str) -> list[Attempt]:
        return await self._readers.run(lambda db: reads.attempts(db, job_id))

    async def query(self, where: JobFilter, *, newest_first: bool, limit: int, after_seq: int | None) -> Page:
        return await self._readers.run(lambda db: reads.search(db, where, newest_first, limit, after_seq))

    async def running(self) -> list[Job]:
        return await self._readers.run(reads.running)

    async def aside(self) -> frozenset[str]:
        return await self._readers.run(reads.tasks_aside)

    async def queues(self) -> list[QueueRow]:
        return await self._readers.run(reads.queues)

    async def counters(self) -> dict[str, int]:
        return await self._readers.run(reads.counters)

    async def next_due(self) -> int | None:
        return await self._readers.run(reads.next_due)

    async def oldest_ready(self) -> dict[str, int]:
        return await self._readers.run(reads.oldest_ready)

    async def next_expiry(self) -> int | None:
        return await self._readers.run(reads.next_expiry)

    # --- upkeep ---

    async def purge(self, purge: Purge) -> Purged:
        """In several short ticks, so that nobody waits long. A power cut may bring deleted jobs back: no harm."""
        jobs: list[tuple[str, int]] = []
        more = True
        for start in range(0, purge.limit, PURGE_ROWS):
            if more:
                step = msgspec.structs.replace(purge, limit=min(PURGE_ROWS, purge.limit - start))
                purged = await self._purge_step(step)
                jobs += purged.jobs
                more = purged.more
        return Purged(jobs=jobs, more=more)

    async def _purge_step(self, purge: Purge) -> Purged:
        purged, self._purge_place = await self._writer.submit(
            lambda tick: upkeep.purge(tick, purge, self._purge_place), relaxed=True, rows=purge.limit
        )
        return purged

    async def purge_subjects(self, limit: int) -> int:
        return await self._writer.submit(lambda tick: upkeep.purge_subjects(tick, limit), relaxed=True, rows=limit)

    async def compact(self, max_pages: int) -> int:
        return await self._writer.submit(lambda tick: upkeep.compact(tick, max_pages), relaxed=True, rows=max_pages)

    async def checkpoint(self) -> None:
        await asyncio.to_thread(self._file.checkpoint)

    # --- the file ---

    async def size_bytes(self) -> int:
        return self._file.size_bytes()

    async def healthy(self) -> None:
        self._writer.check_alive()
        self._file.check_identity()

    async def find_damage(self) -> str | None:
        return await asyncio.to_thread(self._file.look_through)

    async def close(self) -> None:
        await self._writer.stop()
        await self._readers.close()
        await asyncio.to_thread(self._file.close)
        await self._writer.close()
