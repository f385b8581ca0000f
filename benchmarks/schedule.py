"""How late scheduled jobs become eligible: 100,000 of them, due evenly over some seconds.

python -m benchmarks.schedule
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from semtask.engine.changes import Changes
from semtask.engine.promoter import Promoter
from semtask.host.clocks import SystemClock
from semtask.model.identifiers import JobIds
from semtask.model.job import ExecutionMode, NewJob, OnInterrupt
from semtask.model.state import State
from semtask.store.base import Change
from semtask.store.sqlite import open_store

JOBS = 100_000
SPAN_S = 20.0
LIMIT_MS = 50


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="semtask-bench-") as folder:
        lags = asyncio.run(_lags(Path(folder)))
    lags.sort()
    p50, p99 = statistics.median(lags), lags[int(len(lags) * 0.99)]
    print(
        f"scheduled jobs       {JOBS} due over {SPAN_S:.0f} s: eligible {p50:.0f} ms late at the median,"
        f" {p99:.0f} ms at p99 (under {LIMIT_MS}), {lags[-1]:.0f} ms at most"
    )


async def _lags(folder: Path) -> list[float]:
    clock, changes = SystemClock(), Changes()
    store = await open_store(folder / "meta.db", on_commit=changes.publish, now=clock.now_ms, fatal=print)
    promoter = Promoter(store, clock)
    lags: list[float] = []
    done = asyncio.Event()

    def note(batch: Sequence[Change]) -> None:
        now = time.time() * 1000
        lags.extend(now - (c.run_at or 0) for c in batch if c.before is State.SCHEDULED)
        if len(lags) >= JOBS:
            done.set()

    changes.listen(note)
    changes.listen(promoter.on_changes)
    await promoter.start()
    ids = JobIds(clock.now_ms, bytes)
    first = clock.now_ms() + 15_000
    step = SPAN_S * 1000 / JOBS
    for start in range(0, JOBS, 1000):
        jobs = [_job(ids.new(), clock.now_ms(), first + round(n * step)) for n in range(start, start + 1000)]
        await store.insert(jobs, durable=True)
    await done.wait()
    await promoter.stop()
    await store.close()
    return lags


def _job(job_id: str, now: int, run_at: int) -> NewJob:
    return NewJob(
        job_id=job_id,
        queue="q",
        job_type="t",
        execution_mode=ExecutionMode.IN_PROCESS,
        payload="{}",
        created_at=now,
        run_at=run_at,
        on_interrupt=OnInterrupt.REQUEUE,
        content_hash=b"x",
    )


if __name__ == "__main__":
    main()
