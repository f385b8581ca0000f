"""Schedules, ttl and deadlines when the wall clock is set."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from semtask.host.clocks import SystemClock
from semtask.model.state import EndCause, State
from tests.engine.rig import FailingExecutor, PatientExecutor, beating

DAY_MS = 86_400_000


def test_a_jump_forward_makes_due_what_was_scheduled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beating(tmp_path, FailingExecutor()) as heart:
            await heart.insert(run_at=heart.clock.now + 10 * DAY_MS)
            assert (await heart.until(lambda job: True)).state is State.SCHEDULED
            await heart.clock.move_to(heart.clock.now + 11 * DAY_MS)
            await heart.until(lambda job: job.state is State.FAILED)

    asyncio.run(scenario())


def test_a_jump_back_runs_nothing_before_its_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beating(tmp_path, FailingExecutor()) as heart:
            due = heart.clock.now + 1000
            await heart.insert(run_at=due)
            await heart.clock.move_to(heart.clock.now - DAY_MS)
            await heart.clock.move_to(due - 1)
            assert (await heart.until(lambda job: True)).state is State.SCHEDULED
            await heart.clock.move_to(due)
            await heart.until(lambda job: job.state is State.FAILED)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("limit", "state", "cause"),
    [
        ("ttl_ms", State.SKIPPED_TTL, EndCause.TTL),
        ("deadline", State.SKIPPED_DEADLINE, EndCause.DEADLINE),
    ],
)
def test_a_jump_forward_ends_what_waits(tmp_path: Path, limit: str, state: State, cause: EndCause) -> None:
    async def scenario() -> None:
        async with beating(tmp_path, FailingExecutor()) as heart:
            await heart.store.configure_queue("q", paused=True)
            await heart.insert(**{limit: DAY_MS if limit == "ttl_ms" else heart.clock.now + DAY_MS})
            await heart.clock.move_to(heart.clock.now + DAY_MS - 1)
            assert (await heart.until(lambda job: True)).state is State.QUEUED
            await heart.clock.move_to(heart.clock.now + 1)
            job = await heart.until(lambda job: job.state is state)
            assert job.end_cause is cause

    asyncio.run(scenario())


def test_a_jump_forward_stops_what_runs_at_its_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beating(tmp_path, PatientExecutor()) as heart:
            await heart.insert(deadline=heart.clock.now + DAY_MS)
            await heart.until(lambda job: job.state is State.RUNNING)
            await heart.clock.move_to(heart.clock.now + DAY_MS)
            job = await heart.until(lambda job: job.state is State.FAILED)
            assert job.end_cause is EndCause.DEADLINE

    asyncio.run(scenario())


def test_the_real_clock_looks_again_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set while somebody sleeps is noticed soon: no sleep is longer than a second."""

    async def scenario() -> None:
        clock = SystemClock()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await clock.wait_until(clock.now_ms() + 10 * DAY_MS, asyncio.Event())
        assert loop.time() - begin < 5

    asyncio.run(scenario())
