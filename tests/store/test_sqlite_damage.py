"""Facts of SQLite only: rows that were damaged from outside, and the upkeep of the file."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from semtask.errors import DatabaseError
from semtask.model.job import ClaimFacts, OnDuplicate, OnInterrupt, Taker
from semtask.model.outcome import success
from semtask.model.state import EndCause, State
from semtask.store.requests import Finish, JobFilter, TaskClaim
from semtask.store.sqlite_file import SqliteFile
from semtask.store.sqlite_rows import id_bytes
from tests.store.harness import IN_PROCESS, NOW, Harness, new_job, seen

NO_UTF8 = "CAST(x'ff41' AS TEXT)"


@pytest.fixture
def sqlite(tmp_path: Path) -> Harness:
    return Harness("sqlite", tmp_path)


def damage(path: Path, job_id: str, column: str, value: str) -> None:
    """From outside, as a stray hand would."""
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.execute(f"UPDATE jobs SET {column} = {value} WHERE job_id = ?", (id_bytes(job_id),))


@pytest.mark.parametrize("column", ["payload", "tag", "trace_context", "chain_group_id"])
async def test_a_damaged_row_fails_with_the_reason_and_blocks_nobody(sqlite: Harness, column: str) -> None:
    def about(**fields: Any) -> Any:
        return new_job(subject_key="s", on_duplicate=OnDuplicate.AFTER, **fields)

    async with sqlite.open() as opened:
        await opened.insert(bad := about(priority=9), sibling := about(), other := new_job(priority=-1))
        damage(sqlite.path, bad.job_id, column, NO_UTF8)
        with pytest.raises(DatabaseError, match=f"{bad.job_id} is damaged"):
            await opened.store.get(bad.job_id)
        page = await opened.store.query(JobFilter(), newest_first=False, limit=9, after_seq=None)
        assert [job.job_id for job in page.items] == [sibling.job_id, other.job_id]

        assert [job.job_id for job in await opened.claim(limit=1)] == [sibling.job_id]
        row = await opened.job(bad.job_id)
        assert (row.state, row.end_cause, row.finished_at) == (State.FAILED, EndCause.BAD_PAYLOAD, NOW)
        assert row.error is not None
        assert "damaged: 'utf-8' codec can't decode" in row.error
        assert getattr(row, column) == "\N{REPLACEMENT CHARACTER}A"
        assert seen(opened.commits[-1])[:2] == [
            (bad.job_id, State.QUEUED, State.RUNNING),
            (bad.job_id, State.RUNNING, State.FAILED),
        ]
        assert await opened.counts() == {"FAILED": 1, "RUNNING": 1, "QUEUED": 1}
        assert opened.fatal == []


@pytest.mark.parametrize("column", ["payload", "job_type", "tag"])
async def test_a_damaged_task_fails_alone_among_those_that_are_claimed_with_it(sqlite: Harness, column: str) -> None:
    facts = ClaimFacts(daemon_epoch=1, boot_id="b", attempts_id="a", nonce="n", worker="w")
    request = TaskClaim(
        queues={"default": 9},
        takers=[Taker(facts=facts, tasks=frozenset({"t"}), limit=9)],
        offered=frozenset({"t"}),
        rooms={},
        now=NOW,
        node_id="node",
    )
    fields: dict[str, Any] = {"job_type": "t", "execution_mode": IN_PROCESS, "on_interrupt": OnInterrupt.REQUEUE}
    async with sqlite.open() as opened:
        await opened.insert(first := new_job(**fields), bad := new_job(**fields), last := new_job(**fields))
        damage(sqlite.path, bad.job_id, column, NO_UTF8)
        [claimed] = (await opened.store.claim_tasks(request)).jobs
        assert [job.job_id for job in claimed] == [first.job_id, last.job_id]
        assert claimed == [await opened.job(first.job_id), await opened.job(last.job_id)]
        row = await opened.job(bad.job_id)
        assert (row.state, row.end_cause) == (State.FAILED, EndCause.BAD_PAYLOAD)
        assert await opened.counts() == {"FAILED": 1, "RUNNING": 2}
        damage(sqlite.path, last.job_id, "tag", NO_UTF8)
        finishes = [
            Finish(job_id=job.job_id, claim_no=1, outcome=success(result="1"), now=NOW, jitter=1.0) for job in claimed
        ]
        await opened.store.finish_many(finishes)
        assert await opened.counts() == {"FAILED": 1, "DONE": 2}


@pytest.mark.parametrize(
    ("column", "value"), [("claim", "'{'"), ("claim", "'{}'"), ("process", "'[1]'"), ("payload", NO_UTF8)]
)
async def test_a_damaged_running_job_does_not_stop_the_start(sqlite: Harness, column: str, value: str) -> None:
    async with sqlite.open() as opened:
        await opened.insert(bad := new_job(), good := new_job())
        await opened.claim()
    damage(sqlite.path, bad.job_id, column, value)
    async with sqlite.open() as opened:
        assert [job.job_id for job in await opened.store.running()] == [good.job_id]
        row = await opened.job(bad.job_id)
        assert (row.state, row.end_cause, row.claim, row.process) == (State.FAILED, EndCause.BAD_PAYLOAD, None, None)
        assert seen(opened.changes) == [(bad.job_id, State.RUNNING, State.FAILED)]
        assert await opened.counts() == {"FAILED": 1, "RUNNING": 1}


async def test_the_end_of_a_damaged_job_is_its_quarantine(sqlite: Harness) -> None:
    async with sqlite.open() as opened:
        await opened.insert(bad := new_job())
        [job] = await opened.claim()
        damage(sqlite.path, bad.job_id, "payload", NO_UTF8)
        assert (await opened.finish(job, claim_no=7)).decision is None
        finished = await opened.finish(job, now=NOW + 9)
        assert finished.decision is not None
        assert finished.decision.state is State.FAILED
        row = await opened.job(bad.job_id)
        assert (row.state, row.finished_at, row.error) == (State.FAILED, NOW + 9, finished.decision.error)
        assert (await opened.finish(job)).decision is None


# --- the file ---


def wal(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


async def test_a_checkpoint_moves_the_log_and_cuts_it(sqlite: Harness) -> None:
    async with sqlite.open() as opened:
        await opened.insert(*(new_job() for _ in range(300)))
        assert wal(sqlite.path) > 100_000
        await opened.store.checkpoint()
        assert wal(sqlite.path) == 0
        await opened.insert(new_job())
        assert await opened.counts() == {"QUEUED": 301}


async def test_a_reader_keeps_the_log_from_being_cut_and_nothing_else(sqlite: Harness) -> None:
    async with sqlite.open() as opened:
        await opened.insert(new_job())
        with contextlib.closing(apsw.Connection(str(sqlite.path))) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM jobs").fetchall()
            await opened.insert(*(new_job() for _ in range(300)))
            await opened.store.checkpoint()
            assert wal(sqlite.path) > 100_000
            await opened.insert(new_job())
            reader.execute("COMMIT")
        await opened.store.checkpoint()
        assert wal(sqlite.path) == 0
        assert await opened.counts() == {"QUEUED": 302}


class SlowCheckpointer:
    """Stands in for the connection: it is in use until the test lets go, and must not be closed meanwhile."""

    def __init__(self) -> None:
        self.began, self.released = threading.Event(), threading.Event()
        self.events: list[str] = []

    def wal_checkpoint(self, mode: int) -> None:
        self.began.set()
        assert self.released.wait(20)
        self.events.append("moved")

    def close(self) -> None:
        self.events.append("closed")


def test_closing_waits_for_a_checkpoint_that_nobody_awaits_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = SqliteFile(tmp_path / "meta.db")
    file.open(NOW).close()
    slow = SlowCheckpointer()
    monkeypatch.setattr(file, "_checkpointer", slow)
    at_work, closing = threading.Thread(target=file.checkpoint), threading.Thread(target=file.close)
    at_work.start()
    assert slow.began.wait(20)
    closing.start()
    closing.join(0.2)
    slow.released.set()
    for thread in (at_work, closing):
        thread.join(20)
    assert slow.events == ["moved", "moved", "closed"]
    file.checkpoint()  # too late, and without effect
    assert slow.events[-1] == "closed"


async def test_free_pages_can_be_given_back(sqlite: Harness) -> None:
    async with sqlite.open():
        with contextlib.closing(apsw.Connection(str(sqlite.path))) as db:
            assert db.pragma("auto_vacuum") == 2  # INCREMENTAL
