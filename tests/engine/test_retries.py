"""Retries on a clock that the test moves."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from semtask.model.job import Job
from semtask.model.state import State
from tests.engine.rig import FailingExecutor, beating

RETRIES = 200
BASE_MS = 10_000
CAP_MS = 3_600_000


async def delays_of_a_failing_job(home: Path, factor: float) -> list[int]:
    """The pauses before each of its retries, in ms, as the store has them."""
    delays: list[int] = []
    async with beating(home, FailingExecutor()) as heart:
        await heart.insert(
            max_attempts=RETRIES + 1,
            backoff_factor=factor,
            retry_base_delay_ms=BASE_MS,
            retry_max_delay_ms=CAP_MS,
        )
        while True:
            job = await heart.until(partial(_moved_on, len(delays)))
            if job.state is State.FAILED:
                return delays
            assert job.run_at is not None
            delays.append(job.run_at - heart.clock.now)
            await heart.clock.move_to(job.run_at)


def _moved_on(retries: int, job: Job) -> bool:
    return job.state is State.FAILED or (job.state is State.SCHEDULED and job.failures > retries)


def test_two_hundred_delays_follow_the_formula_with_a_new_jitter_each(tmp_path: Path) -> None:
    one, two = (asyncio.run(delays_of_a_failing_job(tmp_path / name, 1.0)) for name in ("one", "two"))
    for delays in (one, two):
        ratios = [delay / BASE_MS for delay in delays]
        assert len(ratios) == RETRIES
        assert min(ratios) < 0.93
        assert max(ratios) > 1.07
        assert all(0.9 <= ratio <= 1.1 for ratio in ratios)
    assert one != two


def test_delays_grow_by_the_factor_up_to_the_cap(tmp_path: Path) -> None:
    delays = asyncio.run(delays_of_a_failing_job(tmp_path / "home", 2.0))
    for nth, delay in enumerate(delays[:8]):
        assert 0.9 <= delay / (BASE_MS * 2**nth) <= 1.1
    assert set(delays[10:]) == {CAP_MS}
