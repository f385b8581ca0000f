"""Recovery where the facts cannot be read at first, or processes survive."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from semtask.engine.changes import Changes
from semtask.engine.recovery import Recovery
from semtask.errors import Throttled
from semtask.model.job import ExecutionMode, Job
from semtask.model.outcome import Outcome, interrupted
from semtask.store.requests import ClaimRequest
from semtask.store.sqlite import SqliteStore, open_store
from tests.engine.clock import FakeClock
from tests.engine.rig import JOB_ID, _facts, _raise, new_job

OVER = interrupted("it is over")


class Judge:
    """Says one thing after the other; an error is raised."""

    def __init__(self, *says: Outcome | Exception | None) -> None:
        self._says = list(says)
        self.more = asyncio.Event()

    async def judge(self, job: Job) -> Outcome | None:
        if not self._says:
            await self.more.wait()
            return OVER
        said = self._says.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    async def wait_unlocked(self, job: Job) -> None:
        await asyncio.sleep(0)

    async def remove_abandoned(self) -> None: ...


@asynccontextmanager
async def with_running_claim(home: Path) -> AsyncIterator[SqliteStore]:
    clock = FakeClock()
    store = await open_store(home / "meta.db", on_commit=Changes().publish, now=clock.now_ms, fatal=_raise)
    await store.insert([new_job(clock.now)], durable=False)
    request = ClaimRequest(
        mode=ExecutionMode.SUBPROCESS,
        queues={"q": 1},
        limit=1,
        now=clock.now,
        node_id="n",
        min_priority=-100,
        facts=_facts,
    )
    assert len(await store.claim(request)) == 1
    try:
        yield store
    finally:
        await store.close()


def recovery_of(store: SqliteStore, judge: Judge, settled: asyncio.Future[Outcome], window_s: float) -> Recovery:
    async def settle(job: Job, outcome: Outcome) -> None:
        settled.set_result(outcome)

    return Recovery(store, judge, occupy=lambda job: None, settle=settle, now_ms=lambda: 1_000_000, window_s=window_s)


def test_what_cannot_be_judged_at_first_is_judged_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_running_claim(tmp_path) as store:
            judge = Judge(OSError(errno.EMFILE, "Too many open files"), None, Throttled("the disk is full"), OVER)
            settled: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            recovery = recovery_of(store, judge, settled, window_s=300)
            await recovery.run()
            assert await asyncio.wait_for(settled, 10) is OVER
            await recovery.stop()

    asyncio.run(scenario())


def test_processes_that_survive_without_a_lock_are_told_of_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_running_claim(tmp_path) as store:
            judge = Judge(None)
            settled: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            recovery = recovery_of(store, judge, settled, window_s=0.05)
            await recovery.run()
            job = await store.get(JOB_ID)
            assert job is not None
            assert (job.kill_failed_at, settled.done()) == (1_000_000, False)
            judge.more.set()
            assert await asyncio.wait_for(settled, 10) is OVER
            await recovery.stop()

    asyncio.run(scenario())
