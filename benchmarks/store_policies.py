"""What the policies cost in the store, beside the same work without them: `python -m benchmarks.store_policies`."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.store import BATCH, FACTS, fill, folder, middle, new_jobs, opened, store_insert
from semtask.model.job import ExecutionMode, NewJob, OnDuplicate
from semtask.model.state import State
from semtask.store.requests import ClaimRequest, Purge
from semtask.store.sqlite import SqliteStore

ROUNDS = 5


def main(scale: float = 1.0) -> None:
    """Print everything; `scale` shrinks the sizes for a quick look."""
    insert_with_subjects(batches=max(10, int(100 * scale)))
    claim_with_policies(count=max(200, int(500 * scale)))
    claim_past_a_lane(depth=max(100, int(100_000 * scale)))
    promote_many(count=max(2_000, int(100_000 * scale)))
    purge_under_load(old=max(5_000, int(1_000_000 * scale)))


def with_fields(jobs: Sequence[NewJob], **fields: Callable[[int], Any]) -> list[NewJob]:
    return [
        msgspec.structs.replace(job, **{name: value(n) for name, value in fields.items()}) for n, job in enumerate(jobs)
    ]


SUBJECTS: dict[str, Callable[[int, int], str]] = {
    "a subject each": lambda batch, n: f"{batch}.{n}",
    "known subjects": lambda _batch, n: f"{n}",
    "one subject": lambda _batch, _n: "s",
}


def insert_with_subjects(batches: int) -> None:
    """Batches of 100, FULL. Each way beside plain jobs, in turns."""
    for how in (OnDuplicate.SUPERSEDE, OnDuplicate.AFTER, OnDuplicate.JOIN):
        for name in SUBJECTS:
            plain, lanes = [], []
            for _ in range(ROUNDS):
                work = [new_jobs(BATCH) for _ in range(batches)]
                lane_work = [in_lanes(jobs, how, name, batch) for batch, jobs in enumerate(work)]
                with folder() as path:
                    plain.append(asyncio.run(store_insert(path / "plain.db", work)))
                    lanes.append(asyncio.run(store_insert(path / "lanes.db", lane_work)))
            ratio = statistics.median(p / s for p, s in zip(plain, lanes, strict=True))
            rate = BATCH * batches / middle(lanes)
            print(f"insert by {BATCH}, {how:<10} {name:<15} {rate:>9,.0f} jobs/s   {ratio:.2f} of plain")
    print()


def in_lanes(jobs: Sequence[NewJob], how: OnDuplicate, subjects: str, batch: int) -> list[NewJob]:
    return with_fields(jobs, subject_key=lambda n: SUBJECTS[subjects](batch, n), on_duplicate=lambda _n: how)


def claim_with_policies(count: int) -> None:
    """One claim at a time and 50 at a time, of tasks: without fsync."""
    fields: dict[str, Callable[[int], Any]] = {
        "subject_key": lambda n: f"subject {n}",
        "on_duplicate": lambda _n: OnDuplicate.AFTER,
        "ttl_ms": lambda _n: 10**9,
        "deadline": lambda _n: 2 * 10**12,
    }
    for limit in (1, 50):
        plain, policies = [], []
        for _ in range(ROUNDS):
            with folder() as path:
                jobs = new_jobs(count * limit)
                plain.append(asyncio.run(claims(path / "plain.db", jobs, limit)))
                policies.append(asyncio.run(claims(path / "policies.db", with_fields(jobs, **fields), limit)))
        ratio = statistics.median(p / s for p, s in zip(policies, plain, strict=True))
        print(
            f"claim of {limit:>2}   plain {middle(plain):>7.0f} us   "
            f"with subject, ttl, deadline {middle(policies):>7.0f} us   {ratio:.2f} of plain"
        )
    print()


def claim_past_a_lane(depth: int) -> None:
    """The claim of other jobs, while one subject runs and `depth` jobs of it wait before them."""
    results = {}
    for waiting in (0, depth):
        with folder() as path:
            lane = with_fields(
                new_jobs(waiting + 1), subject_key=lambda _n: "s", on_duplicate=lambda _n: OnDuplicate.AFTER
            )
            elsewhere = with_fields(new_jobs(depth - waiting), queue=lambda _n: "elsewhere")
            jobs = [*lane, *elsewhere, *new_jobs(400)]
            results[waiting] = asyncio.run(claims(path / "store.db", jobs, 1, first=True))
    print(f"claim past {depth:,} jobs of a running subject   {results[depth]:.0f} us")
    print(f"claim with as many in another queue          {results[0]:.0f} us\n")


async def claims(path: Path, jobs: Sequence[NewJob], limit: int, *, first: bool = False) -> float:
    """Median in us, until nothing is left or 400 are claimed."""
    store = await opened(path)
    for start in range(0, len(jobs), 10_000):
        await store.insert(jobs[start : start + 10_000], durable=False)
    request = ClaimRequest(
        mode=ExecutionMode.IN_PROCESS,
        queues={"default": limit},
        limit=limit,
        now=jobs[0].created_at,
        node_id="bench",
        min_priority=0,
        facts=lambda _job_id, _claim_no: FACTS,
    )
    if first:
        await store.claim(request)
    times = []
    for _ in range(400):
        began = time.perf_counter()
        claimed = await store.claim(request)
        if len(claimed) < limit:
            break
        times.append(time.perf_counter() - began)
    await store.close()
    return middle(times) * 1e6


def promote_many(count: int) -> None:
    """`count` delayed jobs, all due, in batches of 1,000."""
    with folder() as path:
        times = asyncio.run(promotions(path / "store.db", count))
    print(
        f"promote {count:,} by 1,000   p50 {middle(times) * 1000:.1f} ms   longest {max(times) * 1000:.1f} ms   "
        f"{count / sum(times):,.0f} jobs/s\n"
    )


async def promotions(path: Path, count: int) -> list[float]:
    store = await opened(path)
    jobs = with_fields(new_jobs(count), run_at=lambda n: 1_700_000_000_001 + n)
    for start in range(0, count, 10_000):
        await store.insert(jobs[start : start + 10_000], durable=False)
    times = []
    while True:
        began = time.perf_counter()
        promoted = await store.promote(1_800_000_000_000, 1000)
        if not promoted.count:
            break
        times.append(time.perf_counter() - began)
    await store.close()
    return times


def purge_under_load(old: int) -> None:
    """One job after the other goes in while the purge, the compaction and checkpoints run tick after tick."""
    with folder() as path:
        fill(path / "store.db", old, State.DONE)
        size = (path / "store.db").stat().st_size
        alone, during, seconds, longest_wal = asyncio.run(load(path / "store.db"))
        left = (path / "store.db").stat().st_size
    print(f"enqueue, nothing else going on   {spread(alone)}")
    print(f"enqueue, {old:,} jobs deleted   {spread(during)}   {old / seconds:,.0f} deleted/s")
    print(f"file {size / 1e6:,.0f} MB before, {left / 1e6:,.0f} MB after; log at most {longest_wal / 1e6:,.0f} MB")


async def load(path: Path) -> tuple[list[float], list[float], float, int]:
    store = await opened(path)
    alone = await enqueue_until(store, asyncio.create_task(asyncio.sleep(3)))
    began = time.perf_counter()
    wal = 0

    async def clean() -> None:
        nonlocal wal
        more, round_ = True, 0
        while more:
            more = (await store.purge(Purge(finished_before=2))).more
            round_ += 1
            if round_ % 10 == 0:
                wal = max(wal, path.with_name(f"{path.name}-wal").stat().st_size)
                await store.checkpoint()
        while await store.compact(500):
            wal = max(wal, path.with_name(f"{path.name}-wal").stat().st_size)
            await store.checkpoint()

    during = await enqueue_until(store, asyncio.create_task(clean()))
    seconds = time.perf_counter() - began
    await store.close()
    return alone, during, seconds, wal


async def enqueue_until(store: SqliteStore, work: asyncio.Task[None]) -> list[float]:
    times = []
    jobs = iter(new_jobs(200_000))
    while not work.done():
        job = next(jobs)
        began = time.perf_counter()
        await store.insert([job], durable=True)
        times.append(time.perf_counter() - began)
    await work
    return times


def spread(times: Sequence[float]) -> str:
    times = sorted(times)
    p99 = times[int(len(times) * 0.99)]
    texts = [f"{seconds * 1000:.2f} ms" for seconds in (middle(times), p99, times[-1])]
    return "p50 {}   p99 {}   longest {}".format(*texts) + f"   n={len(times):,}"


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
