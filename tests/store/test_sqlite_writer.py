"""Facts of SQLite only: ticks, their durability, and what happens when the disk, the file or the lock fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import apsw
import pytest

from semtask.errors import DatabaseError, Throttled
from semtask.model.disk import DiskState, Trouble
from semtask.model.job import ClaimFacts, OnInterrupt, ProcessIdentity, ProgressNote, Taker
from semtask.model.outcome import success
from semtask.model.state import State
from semtask.store.requests import Finish, JobFilter, TaskClaim
from semtask.store.sqlite import SqliteStore
from semtask.store.sqlite_file import SqliteFile
from semtask.store.sqlite_reads import Readers
from semtask.store.writer import DiskFailed, Phase, Tick, Writer
from tests.store.conftest import Tmpfs
from tests.store.harness import IN_PROCESS, NOW, Harness, Opened, new_job, seen

T = TypeVar("T")
PROCESS = ProcessIdentity(boot_id="b", pid_namespace=1, pid=2, start_ticks=3)


@pytest.fixture
def sqlite(tmp_path: Path) -> Harness:
    return Harness("sqlite", tmp_path)


def writer_of(opened: Opened) -> Writer:
    return cast(SqliteStore, opened.store)._writer


@contextlib.asynccontextmanager
async def one_tick(opened: Opened) -> AsyncIterator[None]:
    """Whatever is asked for inside gathers in one batch, while the writer is kept busy."""
    started, release = threading.Event(), threading.Event()

    def keep_busy(_tick: Tick) -> None:
        started.set()
        release.wait(30)

    busy = writer_of(opened).submit(keep_busy, relaxed=True)
    await asyncio.to_thread(started.wait)
    try:
        yield
        await turn()
    finally:
        release.set()
        await busy


async def turn() -> None:
    """The tasks that are ready hand their requests over."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def ask(work: Awaitable[T]) -> asyncio.Future[T]:
    return asyncio.ensure_future(work)


# --- ticks ---


async def test_finishes_then_changes_then_claims_in_one_commit(sqlite: Harness) -> None:
    async with sqlite.open() as opened:
        await opened.insert(old := new_job(subject_key="s", on_duplicate="after"))
        [running] = await opened.claim()
        fresh = new_job(subject_key="s", on_duplicate="after")
        async with one_tick(opened):
            claim = ask(opened.claim())
            insert = ask(opened.insert(fresh))
            finish = ask(opened.finish(running))
        await asyncio.gather(claim, insert, finish)
        assert seen(opened.commits[-1]) == [
            (old.job_id, State.RUNNING, State.DONE),
            (fresh.job_id, None, State.QUEUED),
            (fresh.job_id, State.QUEUED, State.RUNNING),
        ]


async def test_waiting_requests_share_a_commit(sqlite: Harness) -> None:
    async with sqlite.open() as opened:
        async with one_tick(opened):
            writes = [ask(opened.insert(new_job())) for _ in range(50)]
        await asyncio.gather(*writes)
        assert [len(commit) for commit in opened.commits] == [0, 50]


async def test_a_tick_has_a_limit(sqlite: Harness) -> None:
    async with sqlite.open() as opened:
        async with one_tick(opened):
            writes = []
            for _ in range(9):
                writes.append(ask(opened.insert(*(new_job() for _ in range(500)))))
                await turn()
        await asyncio.gather(*writes)
        assert [len(commit) for commit in opened.commits] == [0, 2000, 2000, 500]


async def test_a_broken_tick_is_replayed_and_only_the_culprit_fails(sqlite: Harness) -> None:
    """SQLite itself gives up the whole transaction in the middle of the batch."""

    def breaks_the_transaction(tick: Tick) -> None:
        tick.db.execute("INSERT OR ROLLBACK INTO meta VALUES (1, 1, 1)")

    def bad_statement(tick: Tick) -> None:
        tick.db.execute("UPDATE jobs SET priority = -7")
        tick.db.execute("SELECT nonsense")

    for culprit in (breaks_the_transaction, bad_statement):
        async with sqlite.open() as opened:
            good = [new_job(queue=culprit.__name__) for _ in range(6)]
            async with one_tick(opened):
                writes = [ask(opened.insert(job)) for job in good[:3]]
                bad = ask(writer_of(opened).submit(culprit))
                writes += [ask(opened.insert(job)) for job in good[3:]]
            await asyncio.gather(*writes)
            with pytest.raises(DatabaseError, match="refused"):
                await bad
            assert seen(opened.changes) == [(job.job_id, None, State.QUEUED) for job in good]
            assert await opened.counts(culprit.__name__) == {"QUEUED": 6}
            stored = await opened.store.get_many([job.job_id for job in good])
            assert all(job.priority == 0 for job in stored.values())


# --- durability ---


@contextlib.asynccontextmanager
async def levels(opened: Opened) -> AsyncIterator[list[str]]:
    """The level of each commit made inside."""
    seen_levels: list[str] = []
    level = ["unknown"]

    def trace(_cursor: Any, sql: str, _bindings: Any) -> bool:
        if "PRAGMA synchronous" in sql:
            level[0] = sql.rsplit(maxsplit=1)[-1]
        if sql == "COMMIT":
            seen_levels.append(level[0])
        return True

    def watch(tick: Tick) -> None:
        level[0] = {1: "NORMAL", 2: "FULL"}[cast(int, tick.db.pragma("synchronous"))]
        tick.db.exec_trace = trace

    await writer_of(opened).submit(watch)
    seen_levels.clear()
    yield seen_levels


async def test_which_writes_are_synced(sqlite: Harness) -> None:
    async with sqlite.open() as opened:
        task = new_job(execution_mode=IN_PROCESS, on_interrupt=OnInterrupt.REQUEUE, run_at=NOW + 1)
        once = new_job(execution_mode=IN_PROCESS, on_interrupt=OnInterrupt.FAIL, queue="once")
        command = new_job(on_interrupt=OnInterrupt.REQUEUE)
        async with levels(opened) as level:

            async def synced(work: Any) -> str:
                level.clear()
                await work
                return "".join(level)

            assert await synced(opened.store.insert([task, once], durable=False)) == "NORMAL"
            assert await synced(opened.store.insert([command], durable=True)) == "FULL"
            assert await synced(opened.store.promote(NOW + 1, 10)) == "NORMAL"
            assert await synced(opened.claim(mode=IN_PROCESS)) == "NORMAL"
            assert await synced(opened.claim(["once"], mode=IN_PROCESS)) == "FULL"
            assert await synced(opened.claim()) == "FULL"
            assert await synced(opened.store.record_process(command.job_id, 1, PROCESS)) == "NORMAL"
            assert await synced(opened.store.record_kill_failed(command.job_id, 1, NOW)) == "FULL"
            assert await synced(opened.cancel(job_id=command.job_id)) == "FULL"
            assert await synced(opened.store.configure_queue("a", paused=True)) == "FULL"
            assert await synced(opened.store.count({"a": 1})) == "FULL"
            note = ProgressNote(job_id=task.job_id, claim_no=1, progress="1")
            assert await synced(opened.store.record_progress([note])) == "NORMAL"
            assert await synced(opened.finish(await opened.job(task.job_id))) == "FULL"
        assert (await opened.job(once.job_id)).claim_no == 1  # the tick was done again, the claim was not
        assert await opened.counts("once") == {"RUNNING": 1}


async def test_which_claims_of_tasks_are_synced(sqlite: Harness) -> None:
    fields = {"execution_mode": IN_PROCESS, "job_type": "t"}
    facts = ClaimFacts(daemon_epoch=1, boot_id="b", attempts_id="a", nonce="n", worker="w")
    request = TaskClaim(
        queues={"default": 9},
        takers=[Taker(facts=facts, tasks=frozenset({"t"}), limit=1)],
        offered=frozenset({"t"}),
        rooms={},
        now=NOW,
        node_id="node",
    )
    async with sqlite.open() as opened:
        await opened.insert(new_job(**fields, on_interrupt=OnInterrupt.REQUEUE))
        await opened.insert(once := new_job(**fields, on_interrupt=OnInterrupt.FAIL))
        async with levels(opened) as level:
            [[job]] = (await opened.store.claim_tasks(request)).jobs
            await opened.store.claim_tasks(request)
            assert level == ["NORMAL", "FULL"]
            finish = Finish(job_id=job.job_id, claim_no=1, outcome=success(), now=NOW, jitter=1.0)
            await opened.store.finish_many([finish])
            assert level[2:] == ["FULL"]
            await opened.store.bring_back("t", 9)
            assert level[3:] == ["NORMAL"]
        assert (await opened.job(once.job_id)).claim_no == 1  # the tick was done again, the claim was not


async def test_nothing_is_told_before_the_commit(sqlite: Harness) -> None:
    """The commit is held back; neither the answer nor the change may be out by then."""
    inserted, at_commit, go_on = threading.Event(), threading.Event(), threading.Event()

    def hold(_cursor: Any, sql: str, _bindings: Any) -> bool:
        if sql.startswith("INSERT INTO jobs"):
            inserted.set()
        if sql == "COMMIT" and inserted.is_set():
            at_commit.set()
            go_on.wait(30)
        return True

    def watch(tick: Tick) -> None:
        tick.db.exec_trace = hold

    async with sqlite.open() as opened:
        await writer_of(opened).submit(watch)
        insert = ask(opened.insert(job := new_job()))
        try:
            await asyncio.to_thread(at_commit.wait)
            for _ in range(5):
                await turn()
            assert not insert.done()
            assert opened.changes == []
            assert await opened.store.get(job.job_id) is None
        finally:
            go_on.set()
        await insert
        assert (await opened.job(job.job_id)).state is State.QUEUED


async def test_one_durable_insert_makes_the_tick_durable(sqlite: Harness) -> None:
    async with sqlite.open() as opened, levels(opened) as level:
        async with one_tick(opened):
            writes = [ask(opened.store.insert([new_job()], durable=durable)) for durable in (False, True, False)]
        await asyncio.gather(*writes)
        assert level == ["NORMAL", "FULL"]


async def test_acknowledged_means_stored_through_kill_9(sqlite: Harness) -> None:
    """A process that prints each id when its insert has returned is killed in the middle."""
    script = """
import asyncio, sys
from pathlib import Path
from tests.store.harness import Harness, new_job

async def main():
    async with Harness("sqlite", Path(sys.argv[1])).open() as opened:
        async def producer():
            while True:
                job = new_job()
                await opened.insert(job)
                print(job.job_id, flush=True)
        await asyncio.gather(*(producer() for _ in range(8)))

asyncio.run(main())
"""
    acknowledged: list[str] = []
    command = [sys.executable, "-c", script, str(sqlite.folder)]
    for round_ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
            assert process.stdout is not None
            for _ in range(300):
                acknowledged.append(process.stdout.readline().strip())
            process.send_signal(signal.SIGKILL)
            acknowledged += process.stdout.read().split()
        async with sqlite.open() as opened:
            stored = await opened.store.get_many(acknowledged)
            assert set(stored) == set(acknowledged)
            assert len(acknowledged) >= 300 * (round_ + 1)
            in_flight = (await opened.counts())["QUEUED"] - len(acknowledged)
            assert 0 <= in_flight <= 8 * (round_ + 1)


# --- the file and its rivals ---


async def test_a_daemon_that_was_replaced_stops_writing(sqlite: Harness) -> None:
    async with sqlite.open() as old:
        await old.insert(new_job())
        async with sqlite.open() as new:
            with pytest.raises(DatabaseError, match="another daemon has taken over"):
                await old.insert(new_job())
            assert len(old.fatal) == 1
            assert "epoch 2, this one is 1" in str(old.fatal[0])
            for write in (old.insert(new_job()), old.store.count({"x": 1}), old.claim(), old.store.healthy()):
                with pytest.raises(DatabaseError):
                    await write
            assert len(old.fatal) == 1
            await new.insert(new_job())
            assert await new.counts() == {"QUEUED": 2}


@pytest.mark.parametrize("how", ["renamed", "deleted", "replaced"])
async def test_a_database_that_is_no_longer_there_takes_nothing(sqlite: Harness, how: str) -> None:
    async with sqlite.open() as opened:
        await opened.insert(new_job())
        [job] = await opened.claim()
        if how == "deleted":
            sqlite.path.unlink()
        else:
            sqlite.path.rename(sqlite.folder / "moved.db")
        if how == "replaced":
            sqlite.path.write_bytes(b"")
        expected = "replaced" if how == "replaced" else "is gone"
        told = len(opened.commits)
        for write in (opened.insert(new_job()), opened.finish(job), opened.claim(), opened.store.healthy()):
            with pytest.raises(DatabaseError, match=expected):
                await write
        assert len(opened.commits) == told
        if how == "renamed":
            (sqlite.folder / "moved.db").rename(sqlite.path)
            assert (await opened.finish(job)).decision is not None
            await opened.store.healthy()
        assert opened.fatal == []


async def test_a_lock_held_by_another_process_is_waited_for_and_then_reported(
    sqlite: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semtask.store.sqlite_file.BUSY_TIMEOUT_MS", 50)
    async with sqlite.open(disk_retry_s=0.05) as opened:
        await opened.insert(new_job())
        [job] = await opened.claim()
        with contextlib.closing(apsw.Connection(str(sqlite.path))) as rival:
            rival.execute("BEGIN IMMEDIATE")
            finish = ask(opened.finish(job))
            with pytest.raises(Throttled, match="another process keeps the database locked") as caught:
                await opened.insert(new_job())
            assert caught.value.retry_after_ms == 50
            assert not finish.done()
            rival.execute("ROLLBACK")
        assert (await finish).decision is not None
        await opened.insert(new_job())


# --- the disk ---


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it becomes true in another thread
            await asyncio.sleep(0.01)


def fill(folder: Path) -> None:
    """Not a byte is left."""
    fd = os.open(folder / "filler", os.O_CREAT | os.O_WRONLY, 0o600)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, bytes(65_536))
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, b"0")
    os.close(fd)


async def test_a_full_disk(tmpfs: Tmpfs) -> None:
    """Inserts and claims are refused as retryable, reads go on, and a finish is never given up."""
    with tmpfs("4m") as folder:
        harness = Harness("sqlite", folder)
        async with harness.open(disk_retry_s=0.05) as opened:
            jobs = [new_job() for _ in range(300)]
            await opened.insert(*jobs)
            running = await opened.claim({"default": 250}, limit=250)
            fill(folder)
            finishes = [ask(opened.finish(job)) for job in running]
            await until(lambda: writer_of(opened)._trouble is not None)
            with pytest.raises(Throttled, match="disk with the database is full") as caught:
                await opened.insert(new_job())
            assert caught.value.retry_after_ms == 50
            with pytest.raises(Throttled, match="disk"):
                await opened.claim()
            with pytest.raises(Throttled, match="disk"):
                await opened.store.healthy()
            page = await opened.store.query(JobFilter(), newest_first=True, limit=9, after_seq=None)
            assert len(page.items) == 9
            await asyncio.sleep(0.2)  # several tries
            assert not all(finish.done() for finish in finishes)
            (folder / "filler").unlink()
            results = await asyncio.gather(*finishes)
            assert all(result.decision is not None for result in results)
            assert await opened.counts() == {"DONE": 250, "QUEUED": 50}
            await opened.insert(new_job())
            assert len(await opened.claim()) == 51
            await opened.store.healthy()
            assert opened.fatal == []
        with contextlib.closing(apsw.Connection(str(harness.path))) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_full_disk_is_known_until_it_takes_a_write_again(tmpfs: Tmpfs) -> None:
    """Also when nothing waits to be written."""
    with tmpfs("4m") as folder:
        async with Harness("sqlite", folder).open(disk_retry_s=0.02) as opened:
            await opened.insert(new_job())
            fill(folder)

            async def known_as_full() -> bool:
                """After some tries of the writer; the log may have had room for a few small commits."""
                with contextlib.suppress(Throttled):
                    await opened.insert(new_job())
                await asyncio.sleep(0.1)
                try:
                    await opened.store.healthy()
                except Throttled:
                    return True
                return False

            async with asyncio.timeout(10):
                while not await known_as_full():
                    pass
            told = len(opened.commits)
            (folder / "filler").unlink()
            await until(lambda: len(opened.commits) > told)
            await opened.store.healthy()


async def test_a_disk_that_is_full_for_one_request_is_not_full_for_all(sqlite: Harness) -> None:
    """Without anything else to wait for, the writer finds out by itself, and tells the engine to look again."""
    async with sqlite.open(disk_retry_s=0.05) as opened:
        await opened.insert(new_job())
        [running] = await opened.claim()
        pages = await writer_of(opened).submit(lambda tick: cast(int, tick.db.pragma("page_count")))
        await writer_of(opened).submit(lambda tick: tick.db.pragma("max_page_count", pages + 8))
        async with one_tick(opened):
            huge = ask(opened.insert(*(new_job(payload='"' + "x" * 10_000 + '"') for _ in range(50))))
            finish = ask(opened.finish(running))
        with pytest.raises(Throttled):
            await huge
        assert (await finish).decision is not None
        assert seen(opened.commits[-1]) == [(running.job_id, State.RUNNING, State.DONE)]
        await opened.insert(new_job())
        assert await opened.counts() == {"DONE": 1, "QUEUED": 1}

        told = len(opened.commits)
        with pytest.raises(Throttled):
            await opened.insert(*(new_job(payload='"' + "x" * 10_000 + '"') for _ in range(50)))
        await until(lambda: len(opened.commits) > told)
        await opened.store.healthy()


async def test_a_close_on_a_full_disk_says_what_was_not_stored(sqlite: Harness) -> None:
    async with sqlite.open(disk_retry_s=60) as opened:

        def full(_tick: Tick) -> None:
            raise apsw.FullError("database or disk is full")

        lost = ask(writer_of(opened).submit(full, phase=Phase.FINISH))
        await until(lambda: writer_of(opened)._trouble is not None)
        await opened.store.close()
        with pytest.raises(DatabaseError, match=r"closed before this was stored.*disk"):
            await lost


async def test_after_an_io_error_the_connection_is_a_new_one(sqlite: Harness) -> None:
    async with sqlite.open(disk_retry_s=0.02) as opened:
        connections: list[apsw.Connection] = []

        def fails_once(tick: Tick) -> str:
            connections.append(tick.db)
            if len(connections) == 1:
                raise apsw.IOError("disk I/O error")
            return "stored"

        assert await writer_of(opened).submit(fails_once, phase=Phase.FINISH) == "stored"
        assert len(set(map(id, connections))) == 2
        await opened.insert(new_job())
        assert opened.fatal == []


async def test_a_damaged_database_ends_the_daemon(sqlite: Harness) -> None:
    """quick_check after an I/O error finds the damage; nothing is written on top of it."""
    async with sqlite.open() as opened:
        await opened.insert(*(new_job() for _ in range(500)))
    size = sqlite.path.stat().st_size
    async with sqlite.open(disk_retry_s=0.02) as opened:

        def fails(_tick: Tick) -> None:
            with sqlite.path.open("r+b") as file:
                for place in range(4096 * 3, size, 4096):
                    file.seek(place)
                    file.write(os.urandom(512))
            raise apsw.IOError("disk I/O error")

        with pytest.raises(DatabaseError, match="damaged"):
            await writer_of(opened).submit(fails, phase=Phase.FINISH)
        assert len(opened.fatal) == 1
        with pytest.raises(DatabaseError, match="damaged"):
            await opened.insert(new_job())


async def test_a_failure_of_the_writer_itself_is_fatal(sqlite: Harness) -> None:
    async with sqlite.open() as opened:

        def crash(_tick: Tick) -> None:
            raise SystemExit("a bug")

        lost = ask(writer_of(opened).submit(crash))
        await until(lambda: bool(opened.fatal))
        with pytest.raises(DatabaseError, match="takes no more writes"):
            await lost
        with pytest.raises(DatabaseError, match="takes no more writes"):
            await opened.insert(new_job())


# --- readers ---


async def test_a_long_query_is_stopped(sqlite: Harness) -> None:
    async with sqlite.open():
        file = SqliteFile(sqlite.path)
        readers = Readers(file.connect_reader, threads=1, limit_s=0.05)
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        with pytest.raises(DatabaseError, match=r"stopped after 0\.05 s"):
            await readers.run(lambda db: db.execute(endless).fetchall())
        assert await readers.run(lambda db: db.execute("SELECT 1").fetchall()) == [(1,)]
        with pytest.raises(DatabaseError, match="readonly"):
            await readers.run(lambda db: db.execute("DELETE FROM jobs").fetchall())
        await readers.close()


# --- a disk that fails ---


class Told:
    """What the store says of the disk."""

    def __init__(self) -> None:
        self.troubles: list[Trouble | None] = []
        self.damages: list[str] = []

    def trouble(self, trouble: Trouble | None) -> None:
        self.troubles.append(trouble)

    def damaged(self, what: str) -> None:
        self.damages.append(what)


def malformed(_tick: Tick) -> None:
    raise apsw.CorruptError("database disk image is malformed")


def not_read(_tick: Tick) -> None:
    error = apsw.IOError("disk I/O error")
    error.extendedresult = apsw.SQLITE_IOERR_READ  # type: ignore[attr-defined]
    raise error


def not_written(_tick: Tick) -> None:
    raise apsw.IOError("disk I/O error")


@pytest.mark.parametrize(("ill", "says"), [(malformed, "malformed"), (not_read, "I/O error")])
async def test_a_page_that_cannot_be_read_is_only_in_the_way_of_who_needs_it(
    sqlite: Harness, ill: Callable[[Tick], None], says: str
) -> None:
    async with sqlite.open(disk_retry_s=0.02) as opened:
        opened.store.report_to(told := Told())
        await opened.insert(new_job())
        [running] = await opened.claim()
        async with one_tick(opened):
            bad = ask(writer_of(opened).submit(ill))
            finish, insert = ask(opened.finish(running)), ask(opened.insert(new_job()))
        with pytest.raises(DatabaseError, match=says):
            await bad
        assert (await finish).decision is not None
        await insert
        assert told.troubles == []
        assert len(told.damages) == 1
        assert says in told.damages[0]


@pytest.mark.parametrize("ill", [malformed, not_read, not_written])
async def test_an_end_that_meets_a_failing_disk_is_tried_again_for_a_while(
    sqlite: Harness, ill: Callable[[Tick], None]
) -> None:
    """The third try is not too late."""
    tries = 0

    def fails(tick: Tick) -> str:
        nonlocal tries
        tries += 1
        if tries <= 3:
            ill(tick)
        return "stored"

    async with sqlite.open(disk_retry_s=0.02) as opened:
        opened.store.report_to(told := Told())
        end = ask(writer_of(opened).submit(fails, phase=Phase.FINISH))
        await until(lambda: told.troubles != [])
        with pytest.raises(Throttled, match="Nothing was stored"):
            await opened.insert(new_job())
        assert await end == "stored"
        await opened.insert(new_job())
        assert [trouble and trouble.state for trouble in told.troubles] == [DiskState.DEGRADED, None]
        assert opened.fatal == []


async def test_a_disk_that_goes_on_failing_is_given_up(sqlite: Harness) -> None:
    async with sqlite.open(disk_retry_s=0.01) as opened:
        began = time.monotonic()
        with pytest.raises(DatabaseError, match="takes no more writes"):
            await writer_of(opened).submit(not_written, phase=Phase.FINISH)
        assert time.monotonic() - began > 0.01 * (1 + 5 + 25)
        [error] = opened.fatal
        assert isinstance(error, DiskFailed)


async def test_a_disk_that_is_full_for_long_is_waited_for(sqlite: Harness) -> None:
    tries = 0

    def full(_tick: Tick) -> None:
        nonlocal tries
        tries += 1
        if tries <= 20:
            raise apsw.FullError("database or disk is full")

    async with sqlite.open(disk_retry_s=0.01) as opened:
        await writer_of(opened).submit(full, phase=Phase.FINISH)
        assert opened.fatal == []
