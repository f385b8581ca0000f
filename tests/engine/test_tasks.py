"""Which tasks are claimed for whom, and what counts in which limit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from semtask.executors.base import TaskEnd
from semtask.model import outcome as outcomes
from semtask.model.job import ExecutionMode, Job, OnInterrupt
from semtask.model.outcome import FailureClass, Outcome
from semtask.model.state import EndCause, State
from tests.engine.task_rig import Engine, PlayedWorkers, engine, info


async def reason(e: Engine, job_id: str) -> str:
    waiting = e.explain.waiting(await e.job(job_id))
    assert waiting is not None
    return waiting.reason


async def until_replaced(e: Engine, job: Job, *, last: bool) -> None:
    await e.until(lambda: job not in e.running and (last or len(e.running) == 2))


def test_a_task_that_nobody_offers_waits_and_says_so_until_an_app_offers_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with engine(tmp_path, PlayedWorkers()) as e:
            e.offer(info("other"))
            [unknown] = await e.enqueue("t")
            [known] = await e.enqueue("other")
            await e.until(lambda: [job.job_id for job in e.running] == [known])
            assert await reason(e, unknown) == "no_app"
            assert await e.store.aside() == {"t"}
            e.offer(info("other"), info("t"))
            await e.until(lambda: {job.job_id for job in e.running} == {known, unknown})
            assert await e.store.aside() == frozenset()

    asyncio.run(scenario())


def test_thousands_of_jobs_that_nobody_offers_hold_up_no_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with engine(tmp_path, PlayedWorkers()) as e:
            await e.enqueue("lost", 1200)
            [known] = await e.enqueue("t")
            e.offer(info("t"))
            await e.until(lambda: [job.job_id for job in e.running] == [known])
            e.end(*e.running)
            e.offer(info("t"), info("lost"))
            await e.until(lambda: len(e.running) == 4)
            while (await e.counts())[State.DONE] < 1201:
                e.end(*e.running)
                await e.until(lambda: bool(e.running) or e.slots.running == 0)
                await asyncio.sleep(0)

    asyncio.run(scenario())


def test_a_limit_of_a_task_holds_and_hinders_no_other_task(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with engine(tmp_path, PlayedWorkers(sync=4, ahead=8)) as e:
            e.offer(info("narrow", concurrency=1), info("t"))
            narrow = await e.enqueue("narrow", 20)
            [other] = await e.enqueue("t")
            await e.until(lambda: len(e.running) == 2)
            assert {job.job_type for job in e.running} == {"narrow", "t"}
            assert await reason(e, narrow[-1]) == "task_full"
            done: list[str] = []
            while len(done) < 20:
                running = [job for job in e.running if job.job_type == "narrow"]
                assert len(running) == 1
                done.append(running[0].job_id)
                e.end(*running)
                await until_replaced(e, running[0], last=len(done) == 20)
            assert done == narrow  # in their order
            assert [job.job_id for job in e.running] == [other]

    asyncio.run(scenario())


def test_a_queue_runs_no_more_than_its_concurrency_whatever_waits_in_the_workers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with engine(tmp_path, PlayedWorkers(sync=4, ahead=8), queue_concurrency=2) as e:
            e.offer(info("t"))
            await e.enqueue("t", 100)
            await e.until(lambda: len(e.running) == 2 + 2 * 8)
            assert len(e.workers.has) == 2
            assert e.slots.busy("q") == 2
            while (await e.counts())[State.DONE] < 100:
                assert len(e.workers.has) <= 2
                e.end(*(jobs[0] for jobs in list(e.workers.has.values())))
                await asyncio.sleep(0.001)

    asyncio.run(scenario())


def test_a_parent_that_waits_for_its_child_in_a_queue_of_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with engine(tmp_path, PlayedWorkers(), max_processes=1, queue_concurrency=1) as e:
            e.offer(info("t"))
            await e.enqueue("t")
            await e.until(lambda: len(e.running) == 1)
            [parent] = e.running
            [child_id] = await e.enqueue("t")
            assert await reason(e, child_id) == "queue_full"
            e.dispatcher.block((parent.job_id, parent.claim_no), blocked=True)
            await e.until(lambda: len(e.running) == 2)
            [child] = [job for job in e.running if job.job_id == child_id]
            e.end(child)
            e.dispatcher.block((parent.job_id, parent.claim_no), blocked=False)
            await e.dispatcher.closed()  # a claim that was begun meanwhile knows of one free slot
            [third] = await e.enqueue("t")
            assert await reason(e, third) == "queue_full"
            e.end(parent)
            await e.until(lambda: [job.job_id for job in e.running] == [third])

    asyncio.run(scenario())


def test_commands_of_a_paused_queue_keep_no_process_from_tasks(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with engine(tmp_path, PlayedWorkers(), max_processes=1) as e:
            e.offer(info("t"))
            e.dispatcher.configure(await e.store.configure_queue("later", paused=True))
            e.dispatcher.wake({"later"}, ExecutionMode.SUBPROCESS)
            for job_id in await e.enqueue("t", 4):
                await e.until(lambda: [job.job_id for job in e.running] == [job_id])  # noqa: B023
                e.end(*e.running)

    asyncio.run(scenario())


def test_async_jobs_need_no_process_and_are_bounded_by_the_queue(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with engine(tmp_path, PlayedWorkers(sync=1, async_room=50), max_processes=1, queue_concurrency=30) as e:
            e.offer(info("t"), info("wait", is_async=True))
            await e.enqueue("wait", 40)
            await e.until(lambda: len(e.running) == 30)
            assert e.slots.processes == 0
            e.end(*e.running)
            await e.until(lambda: len(e.running) == 10)

    asyncio.run(scenario())


def test_without_a_worker_the_shortage_is_told_and_the_job_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with engine(tmp_path, PlayedWorkers(sync=1), max_processes=9) as e:
            e.offer(info("t"))
            first, second = await e.enqueue("t", 2)
            await e.until(lambda: e.workers.short_of == {"t"} or len(e.running) == 1)
            assert [job.job_id for job in e.running] == [first]
            e.workers._sync.append("w9")
            e.dispatcher.room_changed()
            await e.until(lambda: len(e.running) == 2)
            assert {job.job_id for job in e.running} == {first, second}

    asyncio.run(scenario())


def test_ends_are_stored_together_each_as_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with engine(tmp_path, PlayedWorkers()) as e:
            e.offer(info("t"))
            ids = await e.enqueue("t", 3)
            await e.until(lambda: len(e.running) == 3)
            done, failed, given_back = sorted(e.running, key=lambda job: job.seq)
            e.workers.has.clear()
            await e.store.configure_queue("q", paused=True)  # what is given back shall not be claimed again
            e.attempts.ended(
                [
                    TaskEnd(done, Outcome(end_cause=EndCause.SUCCESS, result="[1,2]"), 0.1),
                    TaskEnd(
                        failed,
                        Outcome(
                            end_cause=EndCause.EXCEPTION,
                            failure=FailureClass.HANDLER,
                            error="ValueError: no",
                            exception='{"type":"ValueError","message":"no"}',
                        ),
                        0.1,
                    ),
                    TaskEnd(given_back, outcomes.never_ran("recalled"), None),
                ]
            )
            await e.until(lambda: e.slots.running == 0)
            with e.changes.watch(ids[2]) as watch:
                while (await e.job(ids[2])).state is not State.QUEUED:
                    assert await watch.changed(20)
            rows = [await e.job(job_id) for job_id in ids]
            assert [row.state for row in rows] == [State.DONE, State.FAILED, State.QUEUED]
            assert rows[0].result == "[1,2]"
            assert rows[1].exception is not None
            assert (rows[2].attempts, rows[2].claim_no) == (0, 1)
            assert await e.store.attempts(ids[0]) == []
            assert [a.error for a in await e.store.attempts(ids[1])] == ["ValueError: no"]

    asyncio.run(scenario())


@pytest.mark.parametrize("workers", [1, 2])
def test_what_becomes_free_while_a_claim_is_under_way_is_not_forgotten(tmp_path: Path, workers: int) -> None:
    """A worker, where there is one, else the slot of the queue."""

    async def scenario() -> None:
        async with engine(tmp_path, PlayedWorkers(sync=workers, ahead=4), queue_concurrency=3 - workers) as e:
            e.offer(info("t"))
            await e.enqueue()
            await e.until(lambda: len(e.running) == 1)
            [second] = await e.enqueue(on_interrupt=OnInterrupt.FAIL)  # is never taken ahead
            await e.dispatcher.settled()
            e.dispatcher.room_changed()
            e.end(*e.running)  # the claim that has just been made will find that there is no room
            await e.until(lambda: [job.job_id for job in e.running] == [second])

    asyncio.run(scenario())
