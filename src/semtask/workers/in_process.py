"""The executor of tasks: the apps, the pools of their workers, and what the engine hears of them, in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain

from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.base import AppStatus, TaskEnd, TaskListener, WorkerStatus
from semtask.executors.output import LogFiles
from semtask.executors.spawner import Spawner
from semtask.host import procfs
from semtask.host.app_list import at_one_place
from semtask.model import outcome
from semtask.model.app import App, AppState
from semtask.model.job import ClaimFacts, Job, ProgressNote, Taker
from semtask.model.state import StopReason
from semtask.workers.pool import Conflict, Hiring, Pool
from semtask.workers.process import Site, WorkerSettings
from semtask.workers.worker import RECALL_AFTER_S, Key, Worker

log = logging.getLogger("semtask.workers")

_CLOSE_S = 10.0


class InProcessExecutor:
    """Implements `executors.base.TaskExecutor`. `new_id` makes ids that are never made again, also not by others.

    `daemon_epoch` is part of the facts of the claims. `count` adds to a persistent counter; `now_ms` is the wall clock.
    """

    def __init__(
        self,
        attempts: AttemptsDir,
        spawner: Spawner,
        logs: LogFiles,
        listener: TaskListener,
        count: Callable[[str, int], None],
        *,
        settings: WorkerSettings,
        daemon_epoch: int,
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        self._listener = listener
        self._reports = _Reports(listener)
        self._hiring = Hiring(
            site=Site(attempts=attempts, spawner=spawner, logs=logs, count=count, now_ms=now_ms, settings=settings),
            facts=ClaimFacts(
                daemon_epoch=daemon_epoch, boot_id=procfs.boot_id(), attempts_id=attempts.attempts_id, nonce=""
            ),
            new_id=new_id,
            reports=self._reports,
        )
        self._pools: dict[str, Pool] = {}  # in the order of the list of apps
        self._owners: dict[str, str] = {}  # the app of each task that was offered, as long as that app has it
        self._former: list[Pool] = []  # their workers end what they have begun
        self._turns: list[Pool] = []  # who is offered first where not all may begin
        self._passed_over: set[Pool] = set()
        self._told: dict[str, AppStatus] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False

    # --- apps ------------------------------------------------------------------------------------------------------

    def configure(self, apps: Sequence[App]) -> None:
        """These are the apps now. New ones and changed ones are imported; workers of the others leave after their
        jobs.
        """
        before, self._pools = self._pools, {}
        for app in apps:
            pool = before.pop(app.name, None)
            if pool is None or pool.app != app:
                pool = self._replaced(pool, app)
            self._pools[app.name] = pool
        for name, gone in before.items():
            self._dismiss(gone)
            self._told.pop(name, None)
            self._listener.app_changed(
                AppStatus(app=gone.app, state=AppState.FAILED, error="it is no longer in the list of apps")
            )
        self._open()

    def reload(self, names: Collection[str]) -> None:
        """Import these apps again, in new workers; the old ones leave when their jobs have ended."""
        self._pools = {
            name: self._replaced(pool, pool.app) if name in names else pool for name, pool in self._pools.items()
        }
        self._open()

    async def settled(self, names: Collection[str], timeout_s: float) -> bool:
        """Wait until each of these apps was imported or has failed; False when the time is over first."""
        pools = [pool for name, pool in self._pools.items() if name in names]
        try:
            async with asyncio.timeout(timeout_s):
                for pool in pools:
                    await pool.settled.wait()
                if any(pool.held_back for pool in pools):
                    for pool in list(self._pools.values()):
                        await pool.settled.wait()
        except TimeoutError:
            return False
        return True

    def statuses(self) -> Sequence[AppStatus]:
        return [self._pools[name].status() for name in sorted(self._pools)]

    def workers(self) -> Sequence[WorkerStatus]:
        return [worker.status() for worker in self._workers()]

    async def close(self) -> None:
        """End all workers. Nothing is reported any more; of jobs that still run the next daemon finds out."""
        self._closed = self._reports.closed = True
        if self._watch is not None:
            self._watch.cancel()
        for worker in self._workers():
            if worker.has_jobs:
                worker.process.kill("the daemon stops")
        pools = self._all_pools()
        for pool in pools:
            pool.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*(pool.closed() for pool in pools))
        except TimeoutError:
            log.warning("processes of %d workers survive SIGKILL", len(list(self._workers())))

    # --- jobs ------------------------------------------------------------------------------------------------------

    def takers(self, new_processes: int, limited: Collection[str]) -> Sequence[Taker]:
        first: list[Taker] = []
        ahead: list[Taker] = []
        offered: set[str] = set()
        self._passed_over.clear()
        for pool in self._turns:
            idle = pool.idle_takers()
            room = max(0, new_processes - len(offered))
            if idle and not room and new_processes > 0:
                self._passed_over.add(pool)
            for worker in idle[:room]:
                one, *more = pool.takers_of(worker, limited)
                first.append(one)
                ahead += more
                offered.add(worker.name)
        for pool in self._turns:
            first += pool.async_takers(offered)
            ahead += pool.ahead_takers(limited)
        return first + ahead

    def start(self, worker: str, jobs: Sequence[Job]) -> None:
        for pool in self._all_pools():
            found = pool.worker(worker)
            if found is not None:
                was_idle = found.is_idle
                found.start(jobs)
                if was_idle:
                    pool.taken()
                if found.waiting and self._watch is None:
                    self._watch_waiting()
                return
        never = outcome.never_ran("its worker had left")
        self._reports.ended([TaskEnd(job, never, None) for job in jobs])

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> None:
        key = (job_id, claim_no)
        for worker in self._workers():
            if worker.holds(key):
                worker.stop(key, reason, grace_ms)
                return

    def job_of(self, worker: str, job_id: str, pid: int) -> Key | None:
        if not worker:
            pids = {found.process.pid: found for found in self._workers()}
            found = next((pids[one] for one in procfs.line_of(pid) if one in pids), None)
            return None if found is None else found.job_of(job_id, pid)
        for pool in self._all_pools():
            if (found := pool.worker(worker)) is not None:
                return found.job_of(job_id, pid)
        return None

    def waits_outside(self, key: Key, *, waits: bool) -> None:
        for worker in self._workers():
            if worker.holds(key):
                worker.waits_outside(key, waits=waits)
                return

    def shortage(self, tasks: Collection[str]) -> None:
        for pool in self._pools.values():
            if not any(info.name in tasks for info in pool.tasks):
                continue
            if pool in self._passed_over:
                self._turns.remove(pool)
                self._turns.insert(0, pool)
                self._reports.room_changed()
            else:
                pool.shortage(tasks)

    @property
    def busy_processes(self) -> int:
        return sum(worker.is_busy for worker in self._workers())

    # --- what pools say --------------------------------------------------------------------------------------------

    def room_changed(self) -> None:
        self._reports.room_changed()

    def pool_changed(self, pool: Pool) -> None:
        if self._pools.get(pool.app.name) is pool and not self._closed:
            self._find_conflicts()
            self._tell()

    def _open(self) -> None:
        kept = [pool for pool in self._turns if self._pools.get(pool.app.name) is pool]
        new = [pool for pool in self._pools.values() if pool not in kept]
        self._turns = kept + new
        for pool in new:
            pool.open()
        self._find_conflicts()
        self._tell()

    def _replaced(self, before: Pool | None, app: App) -> Pool:
        if before is None:
            return Pool(app, self._hiring, self)
        self._dismiss(before)
        return Pool(app, self._hiring, self, before.tasks if at_one_place(before.app, app) else ())

    def _dismiss(self, pool: Pool) -> None:
        self._former = [former for former in self._former if former.workers]
        self._former.append(pool)
        pool.close()

    def _find_conflicts(self) -> None:
        """Of two apps that offer one task, the newcomer cannot be used: the app that had the task first keeps it, also
        while it is imported again or cannot be imported. At the start of the daemon that is the one that comes first in
        the list, so an app is offered no job before those ahead of it have been imported or have failed.
        """
        tasks = {name: [info.name for info in pool.tasks] for name, pool in self._pools.items()}
        owners = {task: name for task, name in self._owners.items() if task in tasks.get(name, ())}
        decided = True
        for name, pool in self._pools.items():
            twice = next((task for task in tasks[name] if owners.get(task, name) != name), None)
            pool.conflict = None if twice is None else _conflict(pool.app, twice, self._pools[owners[twice]].app)
            pool.held_back = not decided and any(task not in owners for task in tasks[name])
            if twice is None and not pool.held_back:
                owners.update(dict.fromkeys(tasks[name], name))
            decided = decided and pool.settled.is_set()
        self._owners = owners

    def _tell(self) -> None:
        for name, pool in list(self._pools.items()):
            status = pool.status()
            if self._told.get(name) != status:
                self._told[name] = status
                self._listener.app_changed(status)

    def _all_pools(self) -> Iterable[Pool]:
        return [*self._pools.values(), *self._former]

    def _workers(self) -> Iterable[Worker]:
        return chain.from_iterable([list(pool.workers) for pool in self._all_pools()])

    # --- what waits in workers -------------------------------------------------------------------------------------

    def _watch_waiting(self) -> None:
        self._watch = asyncio.get_running_loop().call_later(RECALL_AFTER_S, self._look_at_waiting)

    def _look_at_waiting(self) -> None:
        self._watch = None
        now = asyncio.get_running_loop().time()
        pools = self._all_pools()
        for pool in pools:
            pool.recall_stuck(now)
        if any(pool.has_work_waiting() for pool in pools):
            self._watch_waiting()


def _conflict(newcomer: App, task: str, owner: App) -> Conflict:
    if at_one_place(newcomer, owner):
        text = f"it is the app {owner.name!r} a second time ({_place(owner)}); remove one of them: semtask apps rm NAME"
    else:
        text = (
            f"its task {task!r} ({_place(newcomer)}) has the name of a task of the app {owner.name!r} "
            f"({_place(owner)}); give one of them another name (name=), or remove an app: semtask apps rm NAME"
        )
    return Conflict(owner.name, text)


def _place(app: App) -> str:
    return f"{app.module} in {app.directory}, run by {app.python}"


class _Reports:
    """Gathers what happens in a turn of the loop and tells the engine once."""

    def __init__(self, listener: TaskListener) -> None:
        self.closed = False
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._ends: list[TaskEnd] = []
        self._notes: list[ProgressNote] = []
        self._blocked: list[tuple[str, int, Sequence[str]]] = []
        self._room = False
        self._due = False

    def ended(self, ends: Sequence[TaskEnd]) -> None:
        self._ends += ends
        self._soon()

    def progress(self, notes: Sequence[ProgressNote]) -> None:
        self._notes += notes
        self._soon()

    def blocked(self, job_id: str, claim_no: int, on: Sequence[str]) -> None:
        self._blocked.append((job_id, claim_no, on))
        self._soon()

    def kill_failed(self, keys: Sequence[Key]) -> None:
        if not self.closed:
            for key in keys:
                self._listener.task_kill_failed(*key)

    def room_changed(self) -> None:
        self._room = True
        self._soon()

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._due = False
        ends, self._ends = self._ends, []
        notes, self._notes = self._notes, []
        blocked, self._blocked = self._blocked, []
        room, self._room = self._room, False
        if self.closed:
            return
        for job_id, claim_no, on in blocked:
            self._listener.task_blocked(job_id, claim_no, on)
        if notes:
            self._listener.task_progress(notes)
        if ends:
            self._listener.tasks_ended(ends)
        if room:
            self._listener.room_changed()
