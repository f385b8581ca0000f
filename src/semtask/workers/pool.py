"""The workers of one app: how many there are, and what each of them could take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from semtask.executors.base import AppStatus
from semtask.model.app import App, AppState
from semtask.model.job import ClaimFacts, Taker
from semtask.protocol.frames import TaskInfo
from semtask.workers.death import Death
from semtask.workers.pace import Pace
from semtask.workers.process import WORKER_PREFIX, Site
from semtask.workers.worker import Reports, Worker

log = logging.getLogger("semtask.workers")

_STARTING_AT_ONCE = 2
_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0
_NOBODY: frozenset[str] = frozenset()


class Listener(Protocol):
    def room_changed(self) -> None: ...
    def pool_changed(self, pool: Pool) -> None:
        """Its state, tasks or error may have changed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hiring:
    """What a pool makes workers with. `facts` are those of every claim, but for the worker."""

    site: Site
    facts: ClaimFacts
    new_id: Callable[[], str]
    reports: Reports


class Conflict(NamedTuple):
    """It offers a task that the app `owner` offers as well."""

    owner: str
    text: str


class Pool:
    """Keeps one worker without jobs ready, which can take any job, and more while there is work for them."""

    def __init__(self, app: App, hiring: Hiring, listener: Listener, tasks: Sequence[TaskInfo] = ()) -> None:
        """`tasks` are what is known of it from before."""
        self.app = app
        self.pace = Pace()
        self.reports = hiring.reports
        self.tasks = tasks
        self.refused: Mapping[str, str] = {}
        self.conflict: Conflict | None = None
        self.held_back = False  # an app ahead of it is still being imported, and may have one of its tasks
        self.settled = asyncio.Event()
        self._hiring = hiring
        self._listener = listener
        self._workers: dict[str, Worker] = {}
        self._lives: set[asyncio.Task[None]] = set()
        self._imported = False
        self._failure: Death | None = None
        self._pause_s = 0.0
        self._resume: asyncio.TimerHandle | None = None
        self._retiring: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = False

    # --- what it is ------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> Collection[Worker]:
        return self._workers.values()

    @property
    def imported(self) -> bool:
        """Whether a worker has said which tasks there are."""
        return self._imported

    @property
    def _may_run(self) -> bool:
        return self.conflict is None and not self.held_back

    def worker(self, name: str) -> Worker | None:
        return self._workers.get(name)

    @property
    def state(self) -> AppState:
        if self.conflict is not None:
            return AppState.FAILED
        if self.held_back:
            return AppState.STARTING
        if any(worker.ready and not worker.leaving for worker in self.workers):
            return AppState.READY
        if self._failure is not None:
            return AppState.STARTING if self._failure.no_room else AppState.FAILED
        return AppState.READY if self._imported else AppState.STARTING

    def status(self) -> AppStatus:
        failure = self._failure
        return AppStatus(
            app=self.app,
            state=self.state,
            tasks=self.tasks,
            refused=self.refused,
            error=self.conflict.text if self.conflict else failure.error if failure is not None else None,
            conflict_with=self.conflict.owner if self.conflict else None,
            traceback=failure.traceback or None if failure is not None else None,
        )

    # --- what it could take ----------------------------------------------------------------------------------------

    def idle_takers(self) -> list[Worker]:
        """The workers that could begin a sync job, those that were used last before the others."""
        if not self._may_run:
            return []
        idle = [worker for worker in self.workers if worker.is_idle and worker.kind != "async" and worker.sync_tasks]
        idle.sort(key=lambda worker: (worker.kind is None, -worker.idle_since))
        return idle

    def takers_of(self, worker: Worker, limited: Collection[str]) -> list[Taker]:
        """What one of the `idle_takers` can take."""
        tasks = worker.sync_tasks
        if worker.kind is None and not self._has_async_room():
            tasks |= worker.async_tasks
        takers = [Taker(facts=worker.facts, tasks=tasks, limit=1)]
        quick = self.pace.quick(limited)
        if quick and (room := worker.room_ahead()):
            takers.append(Taker(facts=worker.facts, tasks=quick, limit=room, ahead=True))
        return takers

    def async_takers(self, offered: Collection[str]) -> list[Taker]:
        """What the async workers can take; a neutral one only if there is no other, and it is not offered yet."""
        if not self._may_run:
            return []
        running = [worker for worker in self.workers if worker.kind == "async" and worker.room > 0]
        neutral = [w for w in self.workers if w.kind is None and w.is_idle and w.async_tasks and w.name not in offered]
        workers = running or neutral[:1]
        return [Taker(facts=w.facts, tasks=w.async_tasks, limit=w.room) for w in workers]

    def ahead_takers(self, limited: Collection[str]) -> list[Taker]:
        quick = self.pace.quick(limited)
        if not quick or not self._may_run:
            return []
        return [
            Taker(facts=worker.facts, tasks=quick, limit=room, ahead=True, queues=worker.queues)
            for worker in self.workers
            if worker.kind == "sync" and not worker.is_idle and (room := worker.room_ahead())
        ]

    def has_work_waiting(self) -> bool:
        return any(worker.waiting for worker in self.workers)

    def recall_stuck(self, now: float) -> None:
        for worker in self.workers:
            if worker.waiting:
                worker.recall_stuck(now)

    # --- workers ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to import the app."""
        self._tend()

    def shortage(self, tasks: Collection[str]) -> None:
        """Jobs of these tasks wait although they could run: start one worker more, unless enough are starting."""
        if any(not info.is_async for info in self.tasks if info.name in tasks):
            wanted = not self.idle_takers()
        else:
            wanted = not self._has_async_room() and not any(w.is_idle and w.kind is None for w in self.workers)
        if wanted and self._may_run:
            self._hire()

    def taken(self) -> None:
        """A worker that was idle has got a job."""
        self._tend()

    def close(self) -> None:
        """Start no worker any more; all leave when their jobs have ended."""
        self._closed = True
        self.settled.set()
        for timer in (self._resume, self._retiring):
            if timer is not None:
                timer.cancel()
        for worker in list(self.workers):
            worker.leave()

    async def closed(self) -> None:
        """Wait until all workers are gone, after `close`."""
        if self._lives:
            await asyncio.wait(self._lives)

    def said_hello(self, worker: Worker) -> None:
        assert worker.process.hello is not None
        self._imported = True
        self._failure = None
        self.tasks = worker.process.hello.tasks
        self.refused = worker.process.hello.refused
        self.settled.set()
        self._listener.pool_changed(self)
        self._retire_later()
        self._listener.room_changed()

    def has_room(self, worker: Worker) -> None:
        self._pause_s = 0.0
        if worker.is_idle:
            self._retire_later()

    def is_leaving(self, worker: Worker) -> None:
        if worker.jobs_done:  # one that must be replaced after each job has done something as well
            self._pause_s = 0.0
        if worker.ready:  # else it did not start, and its end will say why
            self._tend()

    def _tend(self) -> None:
        """See to it that there is a spare."""
        if not any(self._is_spare(worker) or self._is_starting(worker) for worker in self.workers):
            self._hire()

    def _is_spare(self, worker: Worker) -> bool:
        """Whether it could take a job of any task of its app."""
        if not worker.is_idle:
            return False
        return worker.kind is None or not (worker.sync_tasks if worker.kind == "async" else worker.async_tasks)

    @staticmethod
    def _is_starting(worker: Worker) -> bool:
        return not worker.ready and not worker.leaving

    def _has_async_room(self) -> bool:
        return any(worker.kind == "async" and worker.room > 0 for worker in self.workers)

    def _hire(self) -> None:
        starting = sum(not worker.ready and not worker.dead for worker in self.workers)
        if self._closed or self._resume is not None or starting >= _STARTING_AT_ONCE:
            return
        hiring = self._hiring
        try:
            worker = Worker(hiring.site, self.app, WORKER_PREFIX + hiring.new_id(), self, hiring.facts)
        except OSError as error:
            self._back_off(Death(f"no worker could be started: {error}", no_room=True))
            return
        self._workers[worker.name] = worker
        life = self._loop.create_task(self._live(worker), name=worker.name)
        self._lives.add(life)
        life.add_done_callback(self._has_lived)

    async def _live(self, worker: Worker) -> None:
        try:
            death = await worker.process.run()
        finally:
            del self._workers[worker.name]
        worker.has_died(death)
        self._log(worker, death)
        if self._closed:
            return
        if worker.kind is None and not worker.dismissed:
            self._back_off(death)
        self._tend()
        self._listener.room_changed()

    def _has_lived(self, life: asyncio.Task[None]) -> None:
        self._lives.discard(life)
        if not life.cancelled() and (error := life.exception()) is not None:
            log.error("%s of the app %r was lost sight of", life.get_name(), self.app.name, exc_info=error)

    def _log(self, worker: Worker, death: Death) -> None:
        about = {"worker": worker.name, "app": self.app.name}
        if worker.dismissed:
            log.debug("a worker of the app %r has left", self.app.name, extra=about)
        elif worker.ready:
            log.warning("a worker of the app %r has ended: %s", self.app.name, death.error, extra=about)
        else:
            log.error("a worker of the app %r did not start: %s", self.app.name, death.error, extra=about)

    def _back_off(self, death: Death) -> None:
        """Start no worker for a while, longer each time until one has done something."""
        self._failure = death
        self._pause_s = min(2 * self._pause_s or _FIRST_PAUSE_S, _MAX_PAUSE_S)
        if self._resume is not None:
            self._resume.cancel()
        self._resume = self._loop.call_later(self._pause_s, self._end_pause)
        if not death.no_room:
            self.settled.set()
        self._listener.pool_changed(self)

    def _end_pause(self) -> None:
        self._resume = None
        self._tend()

    # --- retiring --------------------------------------------------------------------------------------------------

    def _retire_later(self, since: float | None = None) -> None:
        if self._retiring is None and not self._closed:
            since = self._loop.time() if since is None else since
            self._retiring = self._loop.call_at(since + self._hiring.site.settings.idle_ms / 1000, self._retire)

    def _retire(self) -> None:
        """Let those go that have been idle for long, but one that could take anything."""
        self._retiring = None
        before = self._loop.time() - self._hiring.site.settings.idle_ms / 1000
        idle = sorted((w for w in self.workers if w.is_idle), key=lambda worker: worker.idle_since)
        spares = [worker for worker in idle if self._is_spare(worker)]
        extra = [worker for worker in idle if worker not in spares[-1:]]
        for worker in extra:
            if worker.idle_since > before:
                self._retire_later(worker.idle_since)
                return
            worker.leave()
