"""The store against the raw layer below it, side by side in one run: `python -m benchmarks.store`."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec

from benchmarks.limits import lean
from semtask.model.identifiers import JobIds
from semtask.model.job import ClaimFacts, ExecutionMode, NewJob, OnInterrupt, Taker
from semtask.model.outcome import success
from semtask.model.state import State
from semtask.store.codes import MODES, encode
from semtask.store.requests import ClaimRequest, Finish, JobFilter, TaskClaim
from semtask.store.sql import query
from semtask.store.sqlite import SqliteStore, open_store
from semtask.store.sqlite_file import SqliteFile
from semtask.store.sqlite_insert import NewRow, insert_rows
from semtask.store.sqlite_rows import to_json

BATCH = 100
IN_FLIGHT = 4
TAKEN = 64
FACTS = ClaimFacts(daemon_epoch=1, boot_id="boot", attempts_id="attempts", nonce="nonce")


def main(scale: float = 1.0) -> None:
    """Print everything; `scale` shrinks the sizes for a quick look."""
    rounds = 5
    print(f"apsw {apsw.apsw_version()}, SQLite {apsw.sqlite_lib_version()}, medians of {rounds} rounds\n")
    insert_by_batches(batches=max(10, int(200 * scale)), rounds=rounds)
    insert_alone(count=max(20, int(500 * scale)), rounds=rounds)
    task_cycle(count=max(1_280, int(20_480 * scale)), rounds=rounds)
    claim_by_depth(small=max(100, int(10_000 * scale)), large=max(1_000, int(1_000_000 * scale)))
    listings(finished=max(1_000, int(1_000_000 * scale)))


def insert_by_batches(batches: int, rounds: int) -> None:
    """The same rows, schema and commits with fsync: raw apsw, then the store with a few batches in flight."""
    raw, store, limit = [], [], []
    for _ in range(rounds):
        work = [new_jobs(BATCH) for _ in range(batches)]
        with folder() as path:
            limit.append(lean(path / "lean.db", BATCH * batches, BATCH, TAKEN).inserted)
            raw.append(BATCH * batches / raw_insert(path / "raw.db", work))
            store.append(BATCH * batches / asyncio.run(store_insert(path / "store.db", work)))
    ratio = statistics.median(s / r for s, r in zip(store, raw, strict=True))
    print(f"insert by {BATCH}, FULL       raw apsw {middle(raw):>10,.0f} jobs/s")
    print(f"                          store    {middle(store):>10,.0f} jobs/s   {ratio:.2f} of raw")
    _print_share(store, limit)


def _print_share(store: Sequence[float], limit: Sequence[float]) -> None:
    share = statistics.median(s / x for s, x in zip(store, limit, strict=True))
    print(f"                          lean     {middle(limit):>10,.0f} jobs/s   the store reaches {share:.2f} of it\n")


def insert_alone(count: int, rounds: int) -> None:
    """One job per commit, each awaited before the next."""
    raw, store = [], []
    for _ in range(rounds):
        work = [new_jobs(1) for _ in range(count)]
        with folder() as path:
            raw.append(raw_insert(path / "raw.db", work) / count * 1e6)
            store.append(asyncio.run(store_insert(path / "store.db", work, in_flight=1)) / count * 1e6)
    print(f"insert of one job, FULL   raw apsw {middle(raw):>10,.0f} us")
    print(f"                          store    {middle(store):>10,.0f} us   {middle(store) - middle(raw):+,.0f} us\n")


def task_cycle(count: int, rounds: int) -> None:
    """Tasks claimed for two workers, 1 + 31 each, and finished with fsync; raw: two bare UPDATEs of the same rows."""
    raw, store, cpu, limit = [], [], [], []
    for _ in range(rounds):
        with folder() as path:
            limit.append(lean(path / "lean.db", count, BATCH, TAKEN).cycled)
            for name in ("raw.db", "store.db"):
                fill(path / name, count, State.QUEUED)
            raw.append(count / raw_cycle(path / "raw.db", count))
            seconds, busy = asyncio.run(store_cycle(path / "store.db", count))
            store.append(count / seconds)
            cpu.append(busy / count * 1e6)
    ratio = statistics.median(s / r for s, r in zip(store, raw, strict=True))
    print(f"claim and finish by {TAKEN}    raw apsw {middle(raw):>10,.0f} jobs/s")
    print(f"                          store    {middle(store):>10,.0f} jobs/s   {ratio:.2f} of raw")
    print(f"                          writer   {middle(cpu):>10.1f} us of CPU per job")
    _print_share(store, limit)


def claim_by_depth(small: int, large: int) -> None:
    """One claim of a requeueable task at a time: without fsync, so that the search is seen and not the disk."""
    p50, steps = {}, {}
    for depth in (small, large):
        with folder() as path:
            fill(path / "store.db", depth, State.QUEUED)
            p50[depth] = asyncio.run(claim_latency(path / "store.db"))
            steps[depth] = vm_steps(path / "store.db", "ready_jobs", READY) + vm_steps(
                path / "store.db", "claim_job", CLAIM
            )
            plan = plan_of(path / "store.db", query("ready_jobs"), READY)
        print(f"claim at {depth:>9,} queued   p50 {p50[depth]:>7.0f} us   {steps[depth]} VM steps")
    print(f"                          {p50[large] / p50[small]:.2f} of the time, plan: {plan[0]}\n")


def listings(finished: int) -> None:
    """What `ls` and `status` read, on a store with many finished jobs."""
    with folder() as path:
        fill(path / "store.db", finished, State.DONE)
        for name, p50 in asyncio.run(listing_latency(path / "store.db")).items():
            print(f"{name:<25} at {finished:,} finished   {p50 * 1000:>7.2f} ms")


# --- the raw layer ---


def raw_insert(path: Path, work: Sequence[Sequence[NewJob]]) -> float:
    """Seconds."""
    db = SqliteFile(path).open(now=0)
    rows = [[NewRow(job, 0, State.QUEUED) for job in batch] for batch in work]
    seq = 0
    for batch in rows:
        for row in batch:
            row.seq = seq = seq + 1
    began = time.perf_counter()
    for batch in rows:
        db.execute("BEGIN IMMEDIATE")
        insert_rows(db, batch)
        db.execute("COMMIT")
    elapsed = time.perf_counter() - began
    db.close()
    return elapsed


RAW_CLAIM = encode("""
UPDATE jobs SET state = State.RUNNING, claim_no = claim_no + 1,
    started_at = 1, node_id = 'n', claim = :claim
WHERE seq = :seq AND claim_no = 0 AND state = State.QUEUED
""")
RAW_FINISH = encode("""
UPDATE jobs SET state = State.DONE, finished_at = 2, end_cause = EndCause.SUCCESS, attempts = attempts + 1,
    result = 'null'
WHERE seq = :seq AND claim_no = 1 AND state = State.RUNNING
""")


def raw_cycle(path: Path, count: int) -> float:
    """Seconds."""
    db = SqliteFile(path).open(now=0)
    claim = to_json(FACTS)
    began = time.perf_counter()
    for first in range(1, count + 1, TAKEN):
        rows = [{"seq": seq, "claim": claim} for seq in range(first, first + TAKEN)]
        for sql, level in ((RAW_CLAIM, "NORMAL"), (RAW_FINISH, "FULL")):
            db.execute(f"PRAGMA synchronous = {level}")
            db.execute("BEGIN IMMEDIATE")
            db.executemany(sql, rows)
            db.execute("COMMIT")
    elapsed = time.perf_counter() - began
    db.close()
    return elapsed


def fill(path: Path, count: int, state: State) -> None:
    """A database with `count` jobs in `state`, without the store's help: it would take minutes of fsync."""
    db = SqliteFile(path).open(now=0)
    db.execute("PRAGMA synchronous = OFF")
    ended = state is State.DONE
    update = encode("UPDATE jobs SET state = State.DONE, end_cause = EndCause.SUCCESS, finished_at = 1, exit_code = 0")
    for first in range(0, count, 50_000):
        jobs = new_jobs(min(50_000, count - first))
        db.execute("BEGIN")
        insert_rows(db, [NewRow(j, first + i, State.QUEUED) for i, j in enumerate(jobs, 1)])
        if ended:
            db.execute(f"{update} WHERE seq > {first}")
        db.execute("COMMIT")
    db.execute("UPDATE meta SET next_seq = ?", (count + 1,))
    db.execute(f"INSERT INTO queues (name, {state.lower()}) VALUES ('default', ?)", (count,))
    db.close()


READY = {"mode": MODES.code(ExecutionMode.IN_PROCESS), "queue": "default", "min_priority": -100, "now": 1, "limit": 1}
CLAIM = {"picks": "[[500, 0]]", "now": 1, "node_id": "n", "claim": "{}"}


def vm_steps(path: Path, name: str, values: dict[str, Any]) -> int:
    """Steps of SQLite's virtual machine for one execution."""
    db = apsw.Connection(str(path))
    db.execute("BEGIN")
    seen: list[int] = []
    db.trace_v2(apsw.SQLITE_TRACE_PROFILE, lambda event: seen.append(event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]))
    db.execute(query(name), values).fetchall()
    db.trace_v2(0)
    db.execute("ROLLBACK")
    db.close()
    return sum(seen)


def plan_of(path: Path, sql: str, values: dict[str, Any]) -> list[str]:
    db = apsw.Connection(str(path))
    plan: list[str] = [str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    db.close()
    return plan


# --- the store ---


async def store_insert(path: Path, work: Sequence[Sequence[NewJob]], in_flight: int = IN_FLIGHT) -> float:
    """Seconds, from one task; `in_flight` batches are on their way at a time."""
    store = await opened(path)
    began = time.perf_counter()
    if in_flight == 1:
        for batch in work:
            await store.insert(batch, durable=True)
    else:
        flying: set[asyncio.Future[Any]] = set()
        for batch in work:
            if len(flying) >= in_flight:
                _, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            flying.add(asyncio.ensure_future(store.insert(batch, durable=True)))
        await asyncio.gather(*flying)
    elapsed = time.perf_counter() - began
    await store.close()
    return elapsed


async def store_cycle(path: Path, count: int) -> tuple[float, float]:
    """Seconds in all, and of the writer's CPU."""
    store = await opened(path)
    workers = [msgspec.structs.replace(FACTS, worker=worker) for worker in ("v", "w")]
    tasks = frozenset({"index"})
    takers = [Taker(facts=facts, tasks=tasks, limit=1) for facts in workers]
    takers += [Taker(facts=facts, tasks=tasks, limit=TAKEN // 2 - 1, ahead=True) for facts in workers]
    request = TaskClaim(queues={"default": 2}, takers=takers, offered=tasks, rooms={}, now=1, node_id="bench")
    outcome = success(result="null")
    before = await store._writer.submit(lambda _tick: time.thread_time())
    began = time.perf_counter()
    for _ in range(0, count, TAKEN):
        claimed = await store.claim_tasks(request)
        ends = [
            Finish(job_id=job.job_id, claim_no=job.claim_no, outcome=outcome, now=2, jitter=1.0)
            for jobs in claimed.jobs
            for job in jobs
        ]
        assert len(await store.finish_many(ends)) == TAKEN
    elapsed = time.perf_counter() - began
    busy = await store._writer.submit(lambda _tick: time.thread_time()) - before
    await store.close()
    return elapsed, busy


async def claim_latency(path: Path, count: int = 500) -> float:
    """Median of one claim of one job, in us."""
    store = await opened(path)
    times = []
    for _ in range(count):
        request = ClaimRequest(
            mode=ExecutionMode.IN_PROCESS,
            queues={"default": 1},
            limit=1,
            now=1,
            node_id="bench",
            facts=lambda _job_id, _claim_no: FACTS,
        )
        began = time.perf_counter()
        claimed = await store.claim(request)
        times.append(time.perf_counter() - began)
        assert len(claimed) == 1
    await store.close()
    return middle(times) * 1e6


async def listing_latency(path: Path) -> dict[str, float]:
    """Medians in seconds."""
    store = await opened(path)
    questions: dict[str, Callable[[], Any]] = {
        "ls": lambda: page(store, JobFilter()),
        "ls -s failed": lambda: page(store, JobFilter(state=[State.FAILED])),
        "ls -s done": lambda: page(store, JobFilter(state=[State.DONE])),
        "ls -t none": lambda: page(store, JobFilter(tag="none")),
        "ls -q none": lambda: page(store, JobFilter(queue=["none"])),
        "ls -j none": lambda: page(store, JobFilter(job_type="none")),
        "ls since a moment ago": lambda: page(store, JobFilter(created_after=1_700_000_000_000)),
        "ls of a subject prefix": lambda: page(store, JobFilter(subject_key_prefix="none")),
        "ls, end of an id": lambda: page(store, JobFilter(id_suffix="ffffffff")),
        "stats": store.queues,
    }
    found = {}
    for name, ask in questions.items():
        times = []
        for _ in range(9):
            began = time.perf_counter()
            await ask()
            times.append(time.perf_counter() - began)
        found[name] = middle(times)
    await store.close()
    return found


async def page(store: SqliteStore, where: JobFilter) -> None:
    await store.query(where, newest_first=True, limit=50, after_seq=None)


async def opened(path: Path) -> SqliteStore:
    def fatal(error: BaseException) -> None:
        raise error

    return await open_store(path, on_commit=lambda _changes: None, now=lambda: 0, fatal=fatal)


# --- small things ---

IDS = JobIds(lambda: int(time.time() * 1000), os.urandom)


def new_jobs(count: int) -> list[NewJob]:
    return [
        NewJob(
            job_id=IDS.new(),
            queue="default",
            job_type="index",
            execution_mode=ExecutionMode.IN_PROCESS,
            payload='{"command": "python3", "args": ["script.py", "--input", "data.csv"], "working_dir": "/workspace"}',
            created_at=1_700_000_000_000,
            on_interrupt=OnInterrupt.REQUEUE,
            content_hash=bytes(16),
        )
        for _ in range(count)
    ]


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="semtask-bench-") as name:
        yield Path(name)


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
