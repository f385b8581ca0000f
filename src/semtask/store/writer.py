"""The one thread that writes: group commit without a timer.

While one transaction (a *tick*) commits, the next batch gathers. In a tick the requests run by phase - finishes, then
changes, then claims - so that a new job and a free slot meet in one commit. Each request has its savepoint: what it
did vanishes if it fails. Answers leave after the commit, one wake-up of the event loop per commit.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

import apsw

from semtask.errors import DatabaseError, RpcError, Throttled
from semtask.model.disk import DiskState, Trouble
from semtask.store.base import Change, OnCommit
from semtask.store.sqlite_faults import UNAVAILABLE, explain, is_damage

T = TypeVar("T")

# Rows in one tick, about: a commit stays short, so that nobody waits long for the one before.
MAX_TICK_ROWS = 2_000

# A disk that fails is tried again after these pauses, in units of `retry_s`, and then it is given up.
_SICK_PAUSES = (1, 5, 25)


class Phase(IntEnum):
    """The order within a tick."""

    FINISH = 0  # kept and tried again while the database cannot write
    CHANGE = 1  # refused as Throttled then, as claims are
    CLAIM = 2


class Unusable(Exception):
    """This daemon must not write any more: another one has taken the database over, or it is damaged."""


class DiskFailed(Exception):
    """The database could not be read or written for so long that waiting does not help."""


class _NeedsSync(Exception):
    """A tick that was begun without fsync turned out to need one."""


class Tick:
    """One write transaction, as the requests in it see it. `changes` are announced when it has committed."""

    def __init__(self, db: apsw.Connection, *, synced: bool) -> None:
        self.db = db
        self.changes: list[Change] = []
        self._synced = synced

    def require_sync(self) -> None:
        """Make sure that this tick is committed with fsync, at the price of doing it again if it was not."""
        if not self._synced:
            raise _NeedsSync

    @contextmanager
    def step(self) -> Iterator[None]:
        """A part of a request: what it did vanishes if it raises."""
        before = len(self.changes)
        self.db.execute("SAVEPOINT step")
        try:
            yield
        except Exception:
            del self.changes[before:]
            if self.db.in_transaction:  # SQLite may have rolled back by itself
                self.db.execute("ROLLBACK TO step")
                self.db.execute("RELEASE step")
            raise
        self.db.execute("RELEASE step")


class Request(NamedTuple):
    """A write that was submitted: its future gets what `apply` answers, or its error, after the commit.

    `rows` is about how many it writes; `relaxed`: its commit need not be synced.
    """

    phase: Phase
    relaxed: bool
    rows: int
    apply: Callable[[Tick], Any]
    future: asyncio.Future[Any]


class Database(Protocol):
    """What the writer must know of the schema and the file.

    `distrusted`: something was not synced, as came out beside a commit; `write_log_again` settles it.
    """

    distrusted: bool

    def connect(self) -> apsw.Connection:
        """A connection for writing."""
        ...

    def check(self, db: apsw.Connection) -> None:
        """At the start of each tick. Raises Unusable, or DatabaseError if nothing may be written now."""
        ...

    def probe(self, db: apsw.Connection) -> None:
        """Write something that means nothing."""
        ...

    def find_damage(self, db: apsw.Connection) -> str | None:
        """Look through the whole database: what is damaged. Raises apsw.Error."""
        ...

    def write_log_again(self) -> None:
        """After an I/O error: bring to the disk what was committed. Raises apsw.Error."""
        ...

    def close_books(self, tick: Tick) -> None:
        """At the end of each tick: bring the kept counts up to its changes."""
        ...


class Writer:
    """Owns the write connection. `submit` and `close` belong to the event loop, all else to the thread.

    `on_trouble` and `on_damage` are called on the event loop: see `base.StoreWatch`.
    """

    def __init__(
        self,
        database: Database,
        db: apsw.Connection,
        *,
        on_commit: OnCommit,
        fatal: Callable[[BaseException], None],
        retry_s: float,
    ) -> None:
        self.on_trouble: Callable[[Trouble | None], None] = lambda _: None
        self.on_damage: Callable[[str], None] = lambda _: None
        self._database = database
        self._db = db
        self._on_commit = on_commit
        self._fatal = fatal
        self._retry_s = retry_s
        self._loop = asyncio.get_running_loop()
        self._outbox: list[Request] = []  # of this turn of the loop
        self._inbox: SimpleQueue[list[Request] | None] = SimpleQueue()
        self._held: list[Request] = []  # finishes that the database could not take yet
        self._synced: bool | None = None
        self._dead: str | None = None
        self._closing = False
        self._reopen = False
        self._retry_at = 0.0
        self._trouble: Trouble | None = None  # why the database cannot write now
        self._sick_tries = 0
        self._thread = threading.Thread(target=self._run, name="semtask-writer", daemon=True)
        self._thread.start()

    # --- on the event loop ---

    def submit(
        self, apply: Callable[[Tick], T], *, phase: Phase = Phase.CHANGE, relaxed: bool = False, rows: int = 1
    ) -> asyncio.Future[T]:
        """The result of `apply`, run in the writer and committed; `relaxed` may share a commit without fsync.

        What is submitted in one turn of the loop, and by tasks that are ready to run by then, meets in one commit.
        """
        if self._closing or self._dead:
            raise DatabaseError(self._dead or "the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        if not self._outbox:
            self._loop.call_soon(self._send)
        self._outbox.append(Request(phase, relaxed, rows, apply, future))
        return future

    async def stop(self) -> None:
        """Finish what was accepted, then end the thread."""
        if not self._closing:
            self._closing = True
            self._send()
            self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    async def close(self) -> None:
        """After `stop`: close the connection. The last one of a database empties its write-ahead log."""
        await asyncio.to_thread(self._db.close)

    def check_alive(self) -> None:
        """Raise what a write would raise now, as far as it is known."""
        if self._dead:
            raise DatabaseError(self._dead)
        if self._trouble:
            raise self._throttled(self._trouble.why)

    def _deliver(self, changes: Sequence[Change] | None, answers: Sequence[tuple[Request, Any]]) -> None:
        try:
            if changes is not None:
                self._on_commit(changes)
        finally:
            for request, answer in answers:
                if request.future.done():  # its awaiter was cancelled
                    continue
                if isinstance(answer, Exception):
                    request.future.set_exception(answer)
                else:
                    request.future.set_result(answer)

    def _send(self) -> None:
        if self._outbox:
            self._inbox.put(self._outbox)
            self._outbox = []

    # --- in the thread ---

    def _run(self) -> None:
        more = True
        while more:
            batch, more = self._gather()
            try:
                self._work(batch, last=not more)
            except BaseException as error:  # noqa: BLE001 - handed to `fatal`: a daemon cannot go on without its writer
                self._die(error, batch)

    def _gather(self) -> tuple[list[Request], bool]:
        """What waits, up to a limit, or nothing when it is time to try again; and whether more may come."""
        batch: list[Request] = []
        rows = 0
        try:
            timeout = max(0.0, self._retry_at - time.monotonic()) if self._trouble else None
            sent = self._inbox.get(timeout=timeout)
            while sent is not None:
                batch += sent
                rows += sum(request.rows for request in sent)
                if rows >= MAX_TICK_ROWS:
                    return batch, True
                sent = self._inbox.get_nowait()
        except Empty:
            return batch, True
        return batch, False

    def _work(self, batch: list[Request], *, last: bool = False) -> None:
        if self._dead:
            self._reject(batch, lambda: DatabaseError(self._dead))
        elif self._trouble and not last and time.monotonic() < self._retry_at:
            self._turn_away(batch)
        elif batch or self._held or self._trouble:
            batch = [*self._held, *batch]
            self._held = []
            batch.sort(key=lambda request: request.phase)
            self._write(batch)
        if last:
            why = self._trouble.why if self._trouble else ""
            self._reject(self._held, lambda: DatabaseError(f"the store was closed before this was stored: {why}"))

    def _write(self, batch: list[Request]) -> None:
        try:
            self._repair()
            changes, answers = self._transact(batch)
        except Unusable as error:
            self._die(error, batch)
        except DatabaseError as error:
            why = error.message
            self._reject(batch, lambda: DatabaseError(why))
        except Exception as error:  # noqa: BLE001 - goes to the one request it belongs to
            if isinstance(error, apsw.Error) and self._concerns_all(error, batch):
                self._suspend(error, batch)
            elif len(batch) > 1:
                for request in batch:
                    self._work([request])
            else:
                why = f"the database refused: {error}"
                if is_damage(error):
                    self._call(self.on_damage, why)
                self._reject(batch, lambda: DatabaseError(why))
        else:
            self._sick_tries = 0
            self._note(None)
            self._tell(changes, answers)

    def _concerns_all(self, error: apsw.Error, batch: Sequence[Request]) -> bool:
        """A page that cannot be read is only in the way of those who need it; but an end must not be given up."""
        if is_damage(error):
            return self._reopen or (len(batch) == 1 and batch[0].phase is Phase.FINISH)
        return isinstance(error, UNAVAILABLE)

    def _transact(self, batch: Sequence[Request]) -> tuple[list[Change], list[tuple[Request, Any]]]:
        if not self._trouble and all(request.relaxed for request in batch):
            try:
                return self._tick(batch, synced=False)
            except _NeedsSync:
                pass
        return self._tick(batch, synced=True)

    def _tick(self, batch: Sequence[Request], *, synced: bool) -> tuple[list[Change], list[tuple[Request, Any]]]:
        if self._synced is not synced:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            self._synced = synced
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._database.check(self._db)
            if self._trouble:
                self._database.probe(self._db)
            tick = Tick(self._db, synced=synced)
            answers = [(request, self._apply(tick, request)) for request in batch]
            self._database.close_books(tick)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite may have rolled back by itself
                self._db.execute("ROLLBACK")
            raise
        return tick.changes, answers

    def _apply(self, tick: Tick, request: Request) -> Any:
        """The answer of one request, which may be an error. An error of the database itself ends the whole tick."""
        before = len(tick.changes)
        self._db.execute("SAVEPOINT request")
        try:
            answer = request.apply(tick)
        except Exception as error:
            fatal_to_tick = isinstance(error, apsw.Error | _NeedsSync) and not isinstance(error, apsw.ConstraintError)
            if fatal_to_tick or not self._db.in_transaction:
                raise
            answer = DatabaseError(f"the database refused: {error}") if isinstance(error, apsw.Error) else error
            del tick.changes[before:]
            self._db.execute("ROLLBACK TO request")
        self._db.execute("RELEASE request")
        return answer

    def _suspend(self, error: apsw.Error, batch: Sequence[Request]) -> None:
        """Remember the finishes, turn the others away, and try again: immediately if only finishes are left to try."""
        trouble = explain(error)
        sick = trouble.state is DiskState.DEGRADED
        self._reopen = self._reopen or sick
        if self._reopen and trouble.state is None:  # what failed cannot even be opened again
            trouble = trouble._replace(state=DiskState.DEGRADED)
        alone = all(request.phase is Phase.FINISH for request in batch)
        pause = self._retry_s if alone else 0
        if sick and alone:
            if self._sick_tries == len(_SICK_PAUSES):
                self._die(DiskFailed(trouble.why), batch)
                return
            pause *= _SICK_PAUSES[self._sick_tries]
            self._sick_tries += 1
        self._retry_at = time.monotonic() + pause
        self._note(trouble)
        self._turn_away(batch)

    def _note(self, trouble: Trouble | None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._call(self.on_trouble, trouble)

    def _turn_away(self, batch: Sequence[Request]) -> None:
        answers: list[tuple[Request, Any]] = []
        for request in batch:
            if request.phase is Phase.FINISH:
                self._held.append(request)
            else:
                answers.append((request, self._throttled(self._trouble.why if self._trouble else "")))
        if answers:
            self._tell(None, answers)

    def _repair(self) -> None:
        """After an I/O error the connection is not to be trusted, nor what was not synced: take a new one, look at the
        whole database, and write the log again."""
        if not self._reopen and not self._database.distrusted:
            return
        self._reopen = True
        self._db.close()
        self._synced = None
        self._db = self._database.connect()
        if found := self._database.find_damage(self._db):
            raise apsw.CorruptError(found)
        self._database.write_log_again()
        self._reopen = False

    def _throttled(self, why: str) -> Throttled:
        pause = max(self._retry_s, self._retry_at - time.monotonic())
        return Throttled(f"{why}. Nothing was stored", retry_after_ms=int(pause * 1000))

    def _reject(self, batch: Sequence[Request], error: Callable[[], RpcError]) -> None:
        """One error object each: a shared one would gather the tracebacks of all that raise it."""
        if batch:
            self._tell(None, [(request, error()) for request in batch])

    def _die(self, error: BaseException, batch: Sequence[Request]) -> None:
        self._dead = why = f"the store takes no more writes: {error}"
        self._call(self._fatal, error)
        self._reject([*batch, *self._held], lambda: DatabaseError(why))
        self._held = []

    def _tell(self, changes: Sequence[Change] | None, answers: Sequence[tuple[Request, Any]]) -> None:
        self._call(self._deliver, changes, answers)

    def _call(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            if not self._loop.is_closed():  # a closed loop has nobody who waits
                raise
