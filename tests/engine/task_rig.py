"""The engine's part for tasks - real store, dispatcher, apps, ends - above workers that the test plays itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semtask.engine.apps import Apps
from semtask.engine.changes import Changes
from semtask.engine.dispatcher import Dispatcher
from semtask.engine.explain import Explain
from semtask.engine.live import LiveAttempts
from semtask.engine.slots import Slots
from semtask.engine.task_attempts import TaskAttempts
from semtask.engine.waits import Waits
from semtask.executors.base import AppStatus, TaskEnd, WorkerStatus
from semtask.model import outcome as outcomes
from semtask.model.app import App, AppState
from semtask.model.identifiers import JobIds
from semtask.model.job import ClaimFacts, ExecutionMode, Job, NewJob, OnInterrupt, Taker
from semtask.model.outcome import Outcome
from semtask.model.state import State, StopReason
from semtask.protocol.frames import TaskInfo
from semtask.store.sqlite import SqliteStore, open_store
from semtask.telemetry.events import Events
from tests.engine.clock import FakeClock
from tests.engine.rig import FailingExecutor

APP = App(name="app", module="m:app", directory="/", python="/bin/python")


class PlayedWorkers:
    """Workers of one app that begin jobs and end them only when the test says so."""

    def __init__(self, *, sync: int = 4, async_room: int = 0, ahead: int = 0) -> None:
        self._sync = [f"w{number}" for number in range(sync)]
        self._async_room = async_room
        self._ahead = ahead
        self.has: dict[str, list[Job]] = {}
        self.stops: list[tuple[str, StopReason]] = []
        self.app: AppStatus | None = None
        self.short_of: set[str] = set()

    # --- the port ---

    @property
    def busy_processes(self) -> int:
        return len(self.has)

    def takers(self, new_processes: int, limited: Collection[str]) -> Sequence[Taker]:
        infos = self.app.tasks if self.app else ()
        sync = frozenset(info.name for info in infos if not info.is_async)
        free = [worker for worker in self._sync if worker not in self.has][:new_processes]
        takers = [_taker(worker, sync, 1) for worker in free]
        waiting = frozenset(info.name for info in infos if info.is_async)
        room = self._async_room - len(self.has.get("async", ()))
        if waiting and room > 0:
            takers.append(_taker("async", waiting, room))
        for worker, jobs in self.has.items():
            left = self._ahead - (len(jobs) - 1)
            if worker != "async" and left > 0:
                queues = frozenset(job.queue for job in jobs)
                takers.append(_taker(worker, sync - set(limited), left, ahead=True, queues=queues))
        return takers

    def start(self, worker: str, jobs: Sequence[Job]) -> None:
        self.has.setdefault(worker, []).extend(jobs)

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> None:
        self.stops.append((job_id, reason))

    def job_of(self, worker: str, job_id: str, pid: int) -> None: ...
    def waits_outside(self, key: tuple[str, int], *, waits: bool) -> None: ...
    def shortage(self, tasks: Collection[str]) -> None:
        self.short_of |= set(tasks)

    def configure(self, apps: Sequence[App]) -> None: ...
    def reload(self, names: Collection[str]) -> None: ...

    async def settled(self, names: Collection[str], timeout_s: float) -> bool:
        return True

    def statuses(self) -> Sequence[AppStatus]:
        return [self.app] if self.app else []

    def workers(self) -> Sequence[WorkerStatus]:
        return ()


@dataclass
class Engine:
    store: SqliteStore
    workers: PlayedWorkers
    apps: Apps
    dispatcher: Dispatcher
    attempts: TaskAttempts
    explain: Explain
    changes: Changes
    slots: Slots
    clock: FakeClock
    ids: JobIds = field(init=False)

    def __post_init__(self) -> None:
        self.ids = JobIds(self.clock.now_ms, os.urandom)

    async def enqueue(self, task: str = "t", count: int = 1, **fields: Any) -> list[str]:
        given: dict[str, Any] = {
            "queue": "q",
            "job_type": task,
            "execution_mode": ExecutionMode.IN_PROCESS,
            "payload": "{}",
            "created_at": self.clock.now,
            "on_interrupt": OnInterrupt.REQUEUE,
            "content_hash": b"x",
        }
        jobs = [NewJob(job_id=self.ids.new(), **{**given, **fields}) for _ in range(count)]
        self.dispatcher.wake({job.queue for job in jobs}, ExecutionMode.IN_PROCESS)
        return [one.job_id for one in await self.store.insert(jobs, durable=False)]

    def offer(self, *infos: TaskInfo) -> None:
        self.workers.app = AppStatus(app=APP, state=AppState.READY, tasks=infos)
        self.apps.changed(self.workers.app)

    def end(self, *jobs: Job, outcome: Outcome | None = None) -> None:
        for worker in list(self.workers.has):
            left = [job for job in self.workers.has[worker] if job not in jobs]
            if left:
                self.workers.has[worker] = left
            else:
                del self.workers.has[worker]
        self.attempts.ended([TaskEnd(job, outcome or outcomes.success(), 0.001) for job in jobs])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - what is awaited has no event
                await asyncio.sleep(0.002)

    async def job(self, job_id: str) -> Job:
        job = await self.store.get(job_id)
        assert job is not None
        return job

    async def counts(self) -> dict[State, int]:
        [queue] = [row for row in await self.store.queues() if row.name == "q"]
        return dict(queue.counts)

    @property
    def running(self) -> list[Job]:
        return [job for jobs in self.workers.has.values() for job in jobs]


@asynccontextmanager
async def engine(
    home: Path, workers: PlayedWorkers, *, max_processes: int = 4, queue_concurrency: int = 4
) -> AsyncIterator[Engine]:
    clock, changes = FakeClock(), Changes()
    store = await open_store(home / "meta.db", on_commit=changes.publish, now=clock.now_ms, fatal=_raise)
    live, slots = LiveAttempts(), Slots()
    apps = Apps(store, workers, slots, read=list, wake=lambda: dispatcher.wake_tasks())  # noqa: PLW0108 - made below
    dispatcher = Dispatcher(
        store,
        slots=slots,
        start=_no_commands,
        start_tasks=lambda worker, jobs: attempts.start(worker, jobs),  # noqa: PLW0108 - made below
        tasks=workers,
        offers=apps,
        facts=_no_facts,
        clock=clock,
        node_id="n",
        max_processes=max_processes,
        queue_concurrency=queue_concurrency,
    )
    attempts = TaskAttempts(
        store,
        workers,
        live=live,
        clock=clock,
        jitter=lambda: 1.0,
        events=Events(),
        on_timeout=lambda job: None,
        on_finishing=lambda ends: dispatcher.release(end.job for end in ends),
        log_watch=_NoLogs(),
    )
    changes.listen(dispatcher.on_changes)
    await apps.start()
    dispatcher.open(await store.queues())
    waits = Waits(slots, live, FailingExecutor(), workers, lambda key, blocked: dispatcher.block(key, blocked=blocked))
    explain = Explain(dispatcher, slots, apps, waits)
    try:
        yield Engine(store, workers, apps, dispatcher, attempts, explain, changes, slots, clock)
    finally:
        dispatcher.close()
        await dispatcher.closed()
        await apps.stop()
        await store.close()


def info(name: str = "t", *, is_async: bool = False, concurrency: int | None = None) -> TaskInfo:
    return TaskInfo(name=name, is_async=is_async, parameters={"type": "object"}, concurrency=concurrency)


def _taker(
    worker: str, tasks: frozenset[str], limit: int, *, ahead: bool = False, queues: frozenset[str] | None = None
) -> Taker:
    facts = ClaimFacts(daemon_epoch=1, boot_id="b", attempts_id="a", nonce=worker, worker=worker)
    return Taker(facts=facts, tasks=tasks, limit=limit, ahead=ahead, queues=queues)


class _NoLogs:
    def add(self, job_id: str, claim_no: int) -> None: ...
    def remove(self, job_id: str, claim_no: int) -> None: ...


def _no_commands(job: Job) -> None:
    raise AssertionError("no command is started here")


def _no_facts(job_id: str, claim_no: int) -> ClaimFacts:
    raise AssertionError("no command is claimed here")


def _raise(error: BaseException) -> None:
    raise error
