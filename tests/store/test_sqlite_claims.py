"""Facts of SQLite only: the claims of one worker are kept once, as long as something runs by them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import apsw

from semtask.model.job import ClaimFacts, Job, OnInterrupt, Taker
from semtask.model.outcome import success
from semtask.store.requests import TaskClaim
from semtask.store.sqlite_copy import adopt, nonces_of_running
from tests.store.harness import IN_PROCESS, NOW, Harness, Opened, new_job


def facts(worker: str) -> ClaimFacts:
    return ClaimFacts(daemon_epoch=1, boot_id="b", attempts_id="a", nonce=f"n-{worker}", worker=worker)


async def take(opened: Opened, worker: str, limit: int = 2) -> list[Job]:
    fields: dict[str, Any] = {"job_type": "t", "execution_mode": IN_PROCESS, "on_interrupt": OnInterrupt.REQUEUE}
    await opened.insert(*(new_job(**fields) for _ in range(limit)))
    taker = Taker(facts=facts(worker), tasks=frozenset({"t"}), limit=limit)
    request = TaskClaim(
        queues={"default": 99}, takers=[taker], offered=frozenset({"t"}), rooms={}, now=NOW, node_id="node"
    )
    [jobs] = (await opened.store.claim_tasks(request)).jobs
    return list(jobs)


def kept(path: Path) -> dict[int, str]:
    with contextlib.closing(apsw.Connection(str(path))) as db:
        rows: list[tuple[Any, ...]] = db.execute("SELECT id, facts FROM claims ORDER BY id").fetchall()
        return {number: json.loads(text)["worker"] for number, text in rows}


async def test_jobs_of_one_worker_share_what_their_claims_say(tmp_path: Path) -> None:
    sqlite = Harness("sqlite", tmp_path)
    async with sqlite.open() as opened:
        first, second = [*await take(opened, "v"), *await take(opened, "v")], await take(opened, "w")
        await opened.insert(new_job())
        [command] = await opened.claim()
        assert kept(sqlite.path) == {1: "v", 2: "w"}
        running = {job.job_id: job.claim for job in await opened.store.running()}
        assert running == {job.job_id: job.claim for job in [*first, *second, command]}
        assert [job.claim for job in first] == [facts("v")] * 4


async def test_claims_go_when_nothing_runs_by_them_and_no_number_is_given_twice(tmp_path: Path) -> None:
    sqlite = Harness("sqlite", tmp_path)
    async with sqlite.open() as opened:
        ended, running, last = await take(opened, "v"), await take(opened, "w"), await take(opened, "x")
        for job in [*ended, *last]:
            await opened.finish(job, success(result="1"))
        assert (await opened.job(ended[0].job_id)).claim == facts("v")
        await opened.store.purge_subjects(10)
        assert kept(sqlite.path) == {2: "w", 3: "x"}
        assert (await opened.job(ended[0].job_id)).claim is None
        assert (await opened.job(running[0].job_id)).claim == facts("w")
        for job in running:
            await opened.finish(job, success(result="1"))
        await opened.store.purge_subjects(10)
        await take(opened, "y")
        assert kept(sqlite.path) == {3: "x", 4: "y"}


async def test_a_restored_database_looks_for_no_process_of_a_task_or_a_command(tmp_path: Path) -> None:
    sqlite = Harness("sqlite", tmp_path)
    async with sqlite.open() as opened:
        [task] = await take(opened, "v", 1)
        await opened.insert(new_job())
        [command] = await opened.claim()
    with contextlib.closing(apsw.Connection(str(sqlite.path))) as db:
        assert set(nonces_of_running(db)) == {"n-v", f"{command.job_id}.1"}
        adopt(db, taken={}, marks=None, paused=False, moved=True)
    async with sqlite.open() as opened:
        for job in (task, command):
            claim = (await opened.job(job.job_id)).claim
            assert claim is not None
            assert claim.attempts_id == ""
