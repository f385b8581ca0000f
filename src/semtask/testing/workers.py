"""The workers of a test: nobody but the test itself, which takes one job after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from semtask.executors.base import AppStatus, TaskEnd, WorkerStatus
from semtask.model import outcome
from semtask.model.app import App, AppState
from semtask.model.job import ClaimFacts, Job, Taker
from semtask.model.state import StopReason
from semtask.tasks.registry import Registry, TaskDefinition
from semtask.worker.loading import offers_of

Stop = Callable[[StopReason], None]


class InlineWorkers:
    """An executors.base.TaskExecutor, and engine.apps.Workers: has room for a job while one is asked for.

    The apps are those that have enqueued something. All methods are called on the engine's loop.
    """

    busy_processes = 0

    def __init__(self, facts: Callable[[str, int], ClaimFacts]) -> None:
        self._facts = facts
        self._statuses: dict[Registry, AppStatus] = {}
        self._definitions: dict[str, TaskDefinition] = {}
        self._wanted: asyncio.Future[Job] | None = None
        self._taken = 0
        self._stops: dict[tuple[str, int], Stop] = {}
        self.on_app: Callable[[AppStatus], None] = lambda _: None
        self.on_ends: Callable[[Sequence[TaskEnd]], None] = lambda _: None

    # --- for the test ---

    def know(self, registry: Registry) -> None:
        """Offer the tasks of this app, as they are now."""
        status = self._statuses.get(registry)
        definitions = {definition.name: definition for definition in registry}
        if status is not None and {info.name for info in status.tasks} | status.refused.keys() == definitions.keys():
            return
        name = f"app-{len(self._statuses) + 1}" if status is None else status.app.name
        infos, refused = offers_of(registry)
        app = App(name=name, module="in:test", directory="/", python="/")
        self._statuses[registry] = AppStatus(app=app, state=AppState.READY, tasks=infos, refused=refused)
        self._definitions.update(definitions)
        self.on_app(self._statuses[registry])

    def definition(self, task: str) -> TaskDefinition | None:
        return self._definitions.get(task)

    def want(self) -> asyncio.Future[Job]:
        """There is room for one job from now on, until it comes or the future is cancelled."""
        self._wanted = asyncio.get_running_loop().create_future()
        return self._wanted

    def listen(self, job: Job, stop: Stop) -> None:
        """Call `stop` when this job is to end."""
        self._stops[job.job_id, job.claim_no] = stop

    def forget(self, job: Job) -> None:
        self._stops.pop((job.job_id, job.claim_no), None)

    # --- for the engine ---

    def takers(self, new_processes: int, limited: Collection[str]) -> Sequence[Taker]:
        if self._wanted is None or self._wanted.done() or not self._definitions:
            return ()
        self._taken += 1
        worker = f"inline-{self._taken}"
        facts = self._facts(worker, 1)
        return [Taker(facts=facts, tasks=frozenset(self._definitions), limit=1)]

    def start(self, worker: str, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if self._wanted is None or self._wanted.done():
                self.on_ends([TaskEnd(job, outcome.never_ran("nobody asks for it any more"), None)])
            else:
                self._wanted.set_result(job)

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> None:
        if (stop := self._stops.get((job_id, claim_no))) is not None:
            stop(reason)

    def job_of(self, worker: str, job_id: str, pid: int) -> None: ...
    def waits_outside(self, key: tuple[str, int], *, waits: bool) -> None: ...
    def shortage(self, tasks: Collection[str]) -> None: ...
    def configure(self, apps: Sequence[App]) -> None: ...
    def reload(self, names: Collection[str]) -> None: ...

    async def settled(self, names: Collection[str], timeout_s: float) -> bool:
        return True

    def statuses(self) -> Sequence[AppStatus]:
        return list(self._statuses.values())

    def workers(self) -> Sequence[WorkerStatus]:
        return ()
