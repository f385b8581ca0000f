"""Reading: a few connections of their own, short transactions, and a limit on the time a query may take."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

import apsw

from semtask.errors import DatabaseError
from semtask.model.job import Attempt, Job
from semtask.model.state import State
from semtask.store.codes import STATES
from semtask.store.requests import JobFilter, Page, QueueRow
from semtask.store.sql import query
from semtask.store.sqlite_damage import UNREADABLE, readable_jobs
from semtask.store.sqlite_faults import DamageMet, is_damage
from semtask.store.sqlite_rows import (
    fetch,
    fetch_value,
    id_bytes,
    json_or_none,
    to_attempt,
    to_job,
    to_json,
    to_queue,
)

T = TypeVar("T")

READ_LIMIT_S = 1.0
# A few thousand steps of SQLite's machine take well under a millisecond.
_STEPS_BETWEEN_LOOKS = 5_000
# How far back, in jobs, the end of an id is looked for.
ID_SEARCH_DEPTH = 100_000
# How many jobs may have come in out of the order of their created_at.
CLOCK_SLACK = 1_000


class Readers:
    """Runs functions on read connections in a small pool of threads."""

    def __init__(
        self, connect: Callable[[], apsw.Connection], *, threads: int = 2, limit_s: float = READ_LIMIT_S
    ) -> None:
        self.on_damage: Callable[[str], None] = lambda _: None  # called on the event loop
        self._limit_s = limit_s
        self._connections = [connect() for _ in range(threads)]
        self._idle: SimpleQueue[apsw.Connection] = SimpleQueue()
        for db in self._connections:
            self._idle.put(db)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="semtask-reader")
        self._closed = False

    async def run(self, read: Callable[[apsw.Connection], T]) -> T:
        """The result of `read`. Raises DatabaseError, also when it takes too long."""
        if self._closed:
            raise DatabaseError("the store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, read)
        except DamageMet as error:
            self.on_damage(error.message)
            raise

    def _run(self, read: Callable[[apsw.Connection], T]) -> T:
        db = self._idle.get()
        try:
            with self._limited(db):
                return read(db)
        except apsw.InterruptError as error:
            raise DatabaseError(
                f"the query was stopped after {self._limit_s:g} s; narrow it, for example by a state, queue or tag"
            ) from error
        except apsw.Error as error:
            if is_damage(error):
                raise DamageMet(f"this part of the database cannot be read: {error}; see `semtask doctor`") from error
            raise DatabaseError(f"the database cannot be read: {error}") from error
        finally:
            self._idle.put(db)

    @contextmanager
    def _limited(self, db: apsw.Connection) -> Iterator[None]:
        end = time.monotonic() + self._limit_s
        db.set_progress_handler(lambda: time.monotonic() > end, _STEPS_BETWEEN_LOOKS)
        try:
            yield
        finally:
            db.set_progress_handler(None)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown)
        for db in self._connections:
            db.close()


def get(db: apsw.Connection, job_id: str) -> Job | None:
    try:
        rows = fetch(db, query("get_job"), {"job_id": id_bytes(job_id)})
        return to_job(rows[0]) if rows else None
    except UNREADABLE as error:
        raise DatabaseError(f"the row of job {job_id} is damaged and cannot be decoded: {error}") from error


def get_many(db: apsw.Connection, job_ids: Sequence[str]) -> dict[str, Job]:
    wanted = to_json([id_bytes(job_id).hex() for job_id in job_ids])
    return {job.job_id: job for job in readable_jobs(db, query("get_jobs"), {"job_ids": wanted})}


def attempts(db: apsw.Connection, job_id: str) -> list[Attempt]:
    return [to_attempt(row) for row in fetch(db, query("attempts_of"), {"job_id": id_bytes(job_id)})]


def tasks_aside(db: apsw.Connection) -> frozenset[str]:
    return frozenset(task for (task,) in fetch(db, query("tasks_aside")))


def running(db: apsw.Connection) -> list[Job]:
    return list(readable_jobs(db, query("running_jobs")))


def queues(db: apsw.Connection) -> list[QueueRow]:
    return [to_queue(row) for row in fetch(db, query("list_queues"))]


def counters(db: apsw.Connection) -> dict[str, int]:
    return dict(fetch(db, query("list_counters")))


def next_due(db: apsw.Connection) -> int | None:
    due: int | None = fetch_value(db, query("next_due"))
    return due


def oldest_ready(db: apsw.Connection) -> dict[str, int]:
    oldest: dict[str, int] = {}
    for queue, since in fetch(db, query("oldest_ready")):
        oldest[queue] = min(since, oldest.get(queue, since))
    return oldest


def next_expiry(db: apsw.Connection) -> int | None:
    expiry: int | None = fetch_value(db, query("next_expiry"))
    return expiry


def search(db: apsw.Connection, where: JobFilter, newest_first: bool, limit: int, after_seq: int | None) -> Page:
    """A page in the order of seq: one ordered listing per value of the leading filter, merged."""
    sql, values = listing_statement(where, newest_first)
    if after_seq is None:
        after_seq = _LAST if newest_first else 0
    parameters = {
        "after_seq": after_seq,
        "oldest_seq": _oldest(db, where),
        "states": json_or_none([STATES.code(state) for state in where.state]),
        "queues": json_or_none(where.queue),
        "job_type": where.job_type,
        "tag": where.tag,
        "chain_group_id": where.chain_group_id,
        "created_after": where.created_after,
        "subject_key_prefix": where.subject_key_prefix,
        "not_retried": where.not_retried,
        "id_suffix": where.id_suffix,
    }
    listings = [readable_jobs(db, sql, {**parameters, "value": value}) for value in values]
    merged = heapq.merge(*listings, key=lambda job: job.seq, reverse=newest_first)
    items = list(islice(merged, limit + 1))
    more = len(items) > limit
    return Page(items=items[:limit], next_seq=items[limit - 1].seq if more else None)


def _oldest(db: apsw.Connection, where: JobFilter) -> int:
    """A seq that all matches are above."""
    newest = fetch_value(db, query("last_seq")) or 0
    oldest = newest - ID_SEARCH_DEPTH if where.id_suffix is not None else 0
    if where.created_after is not None:
        oldest = max(oldest, _created_by(db, where.created_after, newest) - CLOCK_SLACK)
    return oldest


def _created_by(db: apsw.Connection, time_ms: int, newest: int) -> int:
    """The last seq that was given out by then: created_at grows with seq, as far as the wall clock goes forward."""
    low, high = 0, newest + 1
    while low + 1 < high:
        middle = (low + high) // 2
        rows = fetch(db, query("first_from"), {"seq": middle})
        if rows and rows[0][1] <= time_ms:
            low = rows[0][0]
        else:
            high = middle
    return low


_LAST = (1 << 63) - 1


def listing_statement(where: JobFilter, newest_first: bool) -> tuple[str, Sequence[str | int | None]]:
    """The listing statement led by the most telling filter that has an index, and the values to run it for."""
    values: Sequence[str | int | None]
    if where.tag is not None:
        driver, values = "tag = :value", [where.tag]
    elif where.chain_group_id is not None:
        driver, values = "chain_group_id = :value", [where.chain_group_id]
    elif where.job_type is not None and (State.DONE in where.state or not where.state):
        driver, values = "job_type = :value", [where.job_type]
    elif where.state:
        driver, values = "state = :value", sorted({STATES.code(state) for state in where.state})
    elif where.queue:
        driver, values = "queue = :value", sorted(set(where.queue))
    else:
        driver, values = ":value IS NULL", [None]
    past, direction = ("<", "DESC") if newest_first else (">", "ASC")
    return query("query_jobs").format(driver=driver, past=past, direction=direction), values
