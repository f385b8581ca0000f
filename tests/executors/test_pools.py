"""The workers of apps: how many there are, who is offered, how they are replaced."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from semtask.model.app import AppState
from semtask.model.outcome import FailureClass
from semtask.workers.pace import Pace
from tests.executors.rig import alive, until, with_nonce
from tests.executors.task_rig import ASYNC, SYNC, TaskRig, task_rig
from tests.impatience import ImpatientLoop


async def settle(r: TaskRig, idle: int) -> None:
    """Wait until there are exactly so many workers, all idle."""
    await until(lambda: len(r.pids("idle")) == idle == len(r.executor.workers()), f"{idle} idle workers")


def test_one_spare_is_kept_and_replaced_when_it_is_taken(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            await settle(r, 1)
            (spare,) = r.pids()
            job = r.job("sleep", seconds=0.5)
            await r.start(job)
            assert r.executor.busy_processes == 1
            await until(lambda: len(r.pids("idle")) == 1, "a new spare")
            assert r.pids("idle") != [spare]
            await r.end(job)
            assert r.executor.busy_processes == 0
            assert len(r.executor.workers()) == 2

    asyncio.run(main())


def test_workers_that_have_nothing_to_do_retire_but_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path, idle_ms=300) as r:
            await r.use(r.write_app())
            jobs = [r.job("sleep", seconds=0.2) for _ in range(3)]
            for job in jobs:
                await r.start(job)
            for job in jobs:
                await r.end(job)
            pids = r.pids()
            await settle(r, 1)
            assert sum(map(alive, pids)) == 1
            assert (await r.run("noop")).outcome.failure is None

    asyncio.run(main())


def test_a_neutral_worker_is_kept_where_there_are_both_kinds(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path, idle_ms=1500) as r:
            await r.use(r.write_app(SYNC + ASYNC))
            one = await r.taker("noop")
            assert one.limit == 1
            assert {"noop", "anoop"} <= one.tasks
            await r.run("anoop")
            await r.run("noop")
            kinds = {worker.kind for worker in r.executor.workers()}
            assert {"sync", "async"} <= kinds
            await settle(r, 1)
            assert [worker.kind for worker in r.executor.workers()] == [None]

    asyncio.run(main())


def test_async_jobs_go_to_the_async_worker_that_is_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(SYNC + ASYNC))
            job = r.job("asleep", seconds=60)
            facts = await r.start(job)
            await until(lambda: len(r.pids("idle")) == 1, "a new spare")
            takers = r.executor.takers(4, ())
            assert [(t.facts.nonce == facts.nonce, t.limit) for t in takers if "anoop" in t.tasks] == [(True, 99)]
            assert [t.facts.nonce == facts.nonce for t in takers if "noop" in t.tasks] == [False]
            # Without a process more for sync jobs there is still room for async ones.
            assert [t.facts.nonce for t in r.executor.takers(0, ())] == [facts.nonce]
            assert r.executor.busy_processes == 0

    asyncio.run(main())


def test_a_shortage_starts_workers_two_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            await r.start(r.job("sleep", seconds=60))
            for _ in range(10):
                r.executor.shortage({"noop"})
            assert len(r.executor.workers()) == 3
            await until(lambda: len(r.pids("idle")) == 2, "two more workers")
            r.executor.shortage({"noop"})  # somebody could take it
            assert len(r.executor.workers()) == 3

    asyncio.run(main())


def test_of_two_apps_with_work_each_one_gets_the_only_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            other = "@app.task\ndef other() -> int:\n    return 1\n"
            await r.use(r.write_app(), r.write_app(other, name="two"))
            (first,) = r.executor.takers(1, ())
            assert "noop" in first.tasks
            rooms = r.rooms
            r.executor.shortage({"other"})  # what a claim says that found a job but nobody to take it
            await until(lambda: r.rooms > rooms, "another claim")
            (second,) = r.executor.takers(1, ())
            assert second.tasks == {"other"}
            r.executor.shortage({"noop"})
            (third,) = r.executor.takers(1, ())
            assert "noop" in third.tasks
            assert len(r.executor.workers()) == 2

    asyncio.run(main())


def test_quick_tasks_are_taken_ahead_as_far_as_they_stay_quick(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            (only,) = r.executor.takers(1, ())
            assert not only.ahead
            for _ in range(12):
                await r.run("noop")
            await r.run("sleep", seconds=0.02)
            await r.run("noop")
            one, ahead = r.executor.takers(1, ())
            assert (one.limit, one.ahead) == (1, False)
            assert ahead.ahead
            assert ahead.queues is None
            assert ahead.facts == one.facts
            assert "noop" in ahead.tasks
            assert "sleep" not in ahead.tasks
            assert 1 <= ahead.limit <= 256
            (alone,) = r.executor.takers(1, {"noop"})
            assert not alone.ahead
            # A worker that has a quick job already: only from the queues that it has jobs of.
            jobs = [r.job("noop", queue="fast"), r.job("noop", queue="other")]
            await r.start(*jobs)
            (more,) = [t for t in r.executor.takers(0, ()) if t.ahead]
            assert more.queues == frozenset({"fast", "other"})
            assert more.limit <= 255
            for job in jobs:
                await r.end(job)
            # Behind a slow one nothing waits.
            slow = r.job("sleep", seconds=0.3)
            await r.start(slow)
            assert not [t for t in r.executor.takers(0, ()) if t.ahead]
            await r.end(slow)
            assert not [t for t in r.executor.takers(1, ()) if t.ahead]

    asyncio.run(main())


def test_how_many_may_wait_follows_from_how_long_they_take() -> None:
    pace = Pace()
    assert not pace.quick(())
    pace.note("quick", 10)
    assert (sorted(pace.quick(())), pace.depth) == (["quick"], 256)
    pace.note("medium", 600)
    assert (sorted(pace.quick(())), pace.depth) == (["medium", "quick"], 4)
    pace.note("slow", 2_000_000)
    assert pace.quick({"quick"}) == {"medium"}
    pace.note("quick", 30_000)  # the machine was busy for once
    assert pace.is_quick("quick")
    for _ in range(20):
        pace.note("quick", 30_000)
    assert not pace.is_quick("quick")
    for _ in range(100):
        pace.note("slow", 5)
    assert pace.is_quick("slow")


def test_a_worker_that_asks_for_it_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path, max_jobs=5) as r:
            await r.use(r.write_app())
            pids = [(await r.run("pid")).outcome.result for _ in range(11)]
            assert len(set(pids)) == 3
            assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [5, 5, 1]
            await until(lambda: not alive(int(pids[0] or 0)), "the end of the first one")

    asyncio.run(main())


def test_an_async_worker_that_is_never_idle_is_replaced_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path, max_jobs=3, async_jobs=10) as r:
            await r.use(r.write_app(ASYNC))
            first = (await r.taker("asleep")).facts.worker
            lasting, *short = r.job("asleep", seconds=1.0), r.job("asleep", seconds=0.01), r.job("asleep", seconds=0.02)
            await r.start(lasting, *short)
            for job in short:
                await r.end(job)
            assert (await r.taker("asleep")).facts.worker != first
            assert (await r.end(lasting)).outcome.result == '"slept"'

    asyncio.run(main())


def test_what_was_behind_the_last_job_of_a_worker_is_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.scripted("recycles"))
            jobs = [r.job("task"), r.job("task"), r.job("task")]
            facts = await r.start(*jobs)
            assert (await r.end(jobs[0])).outcome.result == "1"
            for job in jobs[1:]:
                assert (await r.end(job)).outcome.failure is FailureClass.NEVER_RAN
            # It was asked to leave, and did not; the rig waits for its end.
            r.executor.start(facts.nonce, [late := r.job("task")])
            assert (await r.end(late)).outcome.failure is FailureClass.NEVER_RAN

    asyncio.run(main())


def test_jobs_for_a_worker_that_is_gone_never_ran(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app())
            r.executor.start("worker-x.1", [job := r.job("noop")])
            assert (await r.end(job)).outcome.failure is FailureClass.NEVER_RAN

    asyncio.run(main())


# --- apps ------------------------------------------------------------------------------------------------------------


def test_a_reload_imports_anew_and_lets_running_jobs_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            app = r.write_app()
            await r.use(app)
            running, behind = r.job("sleep", seconds=1), r.job("noop")
            facts = await r.runs(running, behind)
            r.write_app(SYNC + "@app.task\ndef added() -> str:\n    return 'new'\n")
            r.executor.reload(["app"])
            assert r.status().state is AppState.STARTING
            assert await r.executor.settled(["app"], 20)
            assert "added" in {info.name for info in r.status().tasks}
            assert (await r.run("added")).outcome.result == '"new"'
            assert facts.nonce not in {t.facts.nonce for t in r.executor.takers(8, ())}
            assert (await r.end(behind)).outcome.failure is FailureClass.NEVER_RAN
            assert (await r.end(running)).outcome.result == '"slept"'
            await until(lambda: with_nonce(facts.nonce) == [], "the end of the old worker")

    asyncio.run(main())


def test_an_app_that_cannot_be_imported_is_tried_after_1_s_doubling_to_30_s(tmp_path: Path) -> None:
    loop = ImpatientLoop("_end_pause")

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app("raise RuntimeError('not yet')\n"), ready=False)
            await until(lambda: len(loop.pauses) >= 7, "seven attempts to start a worker")

    loop.run(main())
    assert loop.pauses[:7] == [1, 2, 4, 8, 16, 30, 30]


def test_apps_come_and_go(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            one = r.write_app()
            two = r.write_app("@app.task\ndef other() -> str:\n    return 'two'\n", name="two")
            await r.use(one)
            kept = r.pids()
            await r.use(one, two)
            assert set(kept) < set(r.pids())
            assert (await r.run("other")).outcome.result == '"two"'
            await r.use(two)
            assert r.told["app"][-1].state is AppState.FAILED
            assert "no longer" in (r.told["app"][-1].error or "")
            await until(lambda: not alive(kept[0]), "the end of its workers")
            assert r.taker_of("noop") is None
            assert [status.app.name for status in r.executor.statuses()] == ["two"]

    asyncio.run(main())


def test_of_two_apps_with_one_task_the_later_one_fails_until_the_other_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            slow = r.write_app("time.sleep(0.5)\n" + SYNC)
            two = r.write_app("@app.task\ndef noop() -> str:\n    return 'two'\n", name="two")
            await r.use(slow, two, ready=False)
            assert (r.status("app").state, r.status("two").state) == (AppState.READY, AppState.FAILED)
            error = r.status("two").error or ""
            assert "'noop'" in error
            assert "'app'" in error, "the app that has the task"
            assert all(place in error for place in (slow.directory, two.directory, two.python))
            assert (await r.run("noop", n=5)).outcome.result == "5"
            await r.use(two)
            assert r.told["two"][-1].state is AppState.READY
            assert (await r.run("noop")).outcome.result == '"two"'

    asyncio.run(main())


def test_a_worker_that_does_not_leave_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.scripted("deaf"))
            job = r.job("task")
            facts = await r.start(job)
            await r.end(job)
            r.executor.configure([])
            began = time.monotonic()
            await until(lambda: with_nonce(facts.nonce) == [], "its end")
            assert 4 < time.monotonic() - began < 15

    asyncio.run(main())


def test_progress_and_waiting_are_told(tmp_path: Path) -> None:
    code = SYNC + (
        "from semtask.tasks.context import current_job\n"
        "@app.task\ndef steps() -> None:\n"
        "    job = current_job()\n    job.progress(1, 2, 'half')\n"
        "    job._channel.blocked(job, ['x'])\n    time.sleep(0.2)\n    job._channel.blocked(job, [])\n"
    )

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await r.use(r.write_app(code))
            job, behind = r.job("steps"), r.job("noop")
            await r.start(job, behind)
            await until(lambda: r.blocked, "the word that it waits")
            assert r.executor.busy_processes == 0
            # It may be what the other one waits for.
            assert (await r.end(behind)).outcome.failure is FailureClass.NEVER_RAN
            end = (await r.end(job)).outcome
            assert end.failure is None, end.error
            assert r.blocked == [(job.job_id, ["x"]), (job.job_id, [])]
            assert [note.progress for note in r.notes] == ['{"done":1.0,"total":2.0,"text":"half"}']

    asyncio.run(main())
