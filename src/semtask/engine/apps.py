"""Which tasks can be run here: the apps of this daemon, their state, and the jobs that wait for an app or for room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from semtask.engine.background import Background
from semtask.engine.signatures import Arguments
from semtask.engine.slots import Slots
from semtask.errors import ConfigError, Conflict, NotFound, RpcError, ValidationError
from semtask.executors.base import AppStatus, WorkerStatus
from semtask.model.app import App, AppState
from semtask.protocol.frames import TaskInfo
from semtask.store.base import Store

log = logging.getLogger("semtask.apps")

BATCH = 1000
AGAIN_S = 1.0


class Workers(Protocol):
    """What the executor of tasks knows about apps: see workers.in_process."""

    def configure(self, apps: Sequence[App]) -> None:
        """These are the apps now. Workers of others, and of changed ones, leave when they have ended their jobs."""
        ...

    def reload(self, names: Collection[str]) -> None:
        """Import these apps again, in new workers."""
        ...

    async def settled(self, names: Collection[str], timeout_s: float) -> bool:
        """Wait until none of them is being imported for the first time, or the time is over."""
        ...

    def statuses(self) -> Sequence[AppStatus]: ...
    def workers(self) -> Sequence[WorkerStatus]: ...


class Apps:
    """Keeps the table of offered tasks, and brings jobs back that were set aside when their time has come.

    `read` gives the list of apps as the files have it now. `wake` is called when claims may find more.
    """

    def __init__(
        self,
        store: Store,
        workers: Workers,
        slots: Slots,
        *,
        read: Callable[[], Sequence[App]],
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._workers = workers
        self._slots = slots
        self._read = read
        self._wake = wake
        self._by_app: dict[str, tuple[TaskInfo, ...]] = {}
        self._tasks: dict[str, tuple[str, TaskInfo]] = {}
        self._arguments: dict[str, Arguments] = {}
        self._aside: set[str] = set()
        self._returning: set[str] = set()
        self._again: set[str] = set()  # of these more were set aside, or may return, since some were asked back
        self._background = Background()
        self.offered: frozenset[str] = frozenset()
        self.limited: Mapping[str, int] = {}

    async def start(self) -> None:
        """Begin to import the apps. An unreadable list is no reason not to run commands: it is logged."""
        self._aside = set(await self._store.aside())
        try:
            self._workers.configure(self._read())
        except ConfigError as error:
            log.error("no apps: %s", error.message)  # noqa: TRY400 - the message says it all

    async def stop(self) -> None:
        await self._background.stop()

    # --- what can be run -----------------------------------------------------------------------------------------

    def changed(self, status: AppStatus) -> None:
        """An app was imported, or failed, or is gone."""
        if status.state is AppState.READY:
            self._by_app[status.app.name] = tuple(status.tasks)
        else:
            self._by_app.pop(status.app.name, None)
        self._rebuild()

    def _rebuild(self) -> None:
        before = self._tasks
        self._tasks = {info.name: (app, info) for app, infos in self._by_app.items() for info in infos}
        self._arguments = {
            name: self._arguments[name]
            if name in self._arguments and before[name][1] == info
            else Arguments(info.parameters)
            for name, (_, info) in self._tasks.items()
        }
        self.offered = frozenset(self._tasks)
        self.limited = {name: info.concurrency for name, (_, info) in self._tasks.items() if info.concurrency}
        for task in self._aside & self.offered:
            self._bring_back(task)
        self._wake()

    def task(self, name: str) -> TaskInfo | None:
        found = self._tasks.get(name)
        return found[1] if found else None

    def check(self, task: str, payload: bytes, source: str | None) -> None:
        """Raises ValidationError if the payload does not fit the signature of a task that is offered now, and Conflict
        if the task is that of another project than the `source` of the job.
        """
        if source is not None and task in self._tasks:
            app, info = self._tasks[task]
            if info.source is not None and info.source != source:
                raise Conflict(
                    f"the task {task!r} of the app {app!r} is that of {info.source}, not that of {source}, which "
                    "enqueues it: rename one of them, or, if it is one project, name it in both: "
                    "Semantica(project='...')",
                    details={"task": task, "app": app},
                )
        arguments = self._arguments.get(task)
        if arguments is not None:
            problem = arguments.problem(payload)
            if problem is not None:
                raise ValidationError(
                    f"`payload` does not fit the signature of the task {task!r}: {problem}",
                    details={"parameter": "payload"},
                )

    def rooms(self) -> dict[str, int]:
        """Of tasks with a limit of their own: how many more of their jobs may run."""
        return {name: max(limit - self._slots.running_of(name), 0) for name, limit in self.limited.items()}

    # --- jobs that were set aside ----------------------------------------------------------------------------------

    def set_aside(self, tasks: Collection[str]) -> None:
        """Claims have found jobs of these tasks that nobody offers, or that have no room."""
        self._aside.update(tasks)
        self._again.update(self._returning.intersection(tasks))
        for task in tasks:
            self.released(task)

    def released(self, task: str) -> None:
        """There may be room for a job of this task: one of them has ended, waits for another job, or will not run."""
        if task in self._aside and task in self.offered:
            limit = self.limited.get(task)
            if limit is None or self._slots.running_of(task) < limit:
                self._bring_back(task)

    def _bring_back(self, task: str) -> None:
        if task in self._returning:
            self._again.add(task)
        else:
            self._returning.add(task)
            self._background.spawn(self._return_jobs(task), f"bringing back jobs of {task}")

    async def settled(self) -> bool:
        """Wait until no jobs are being brought back. Whether there were any."""
        waited = bool(self._returning)
        while self._returning:
            await self._background.idle(AGAIN_S)
        return waited

    async def _return_jobs(self, task: str) -> None:
        returned = 0
        try:
            while task in self._aside and task in self.offered:
                self._again.discard(task)
                limit = self.limited.get(task)
                room = BATCH if limit is None else limit - self._slots.running_of(task)
                if room <= 0:
                    return
                # If the queues of those that returned have no slot, the room is for others, which may be far behind.
                room = min(max(room, returned), BATCH)
                count = await self._insist(task, room)
                returned += count
                if count < room and task not in self._again:
                    self._aside.discard(task)
                if count:
                    self._wake()
                if limit is not None and task not in self._again:
                    return
        finally:
            self._returning.discard(task)

    async def _insist(self, task: str, limit: int) -> int:
        while True:
            try:
                return await self._store.bring_back(task, limit)
            except RpcError as error:
                log.warning("jobs of %s cannot be brought back now, trying again: %s", task, error.message)
            await asyncio.sleep(AGAIN_S)

    # --- for people --------------------------------------------------------------------------------------------------

    @property
    def statuses(self) -> Sequence[AppStatus]:
        return self._workers.statuses()

    @property
    def workers(self) -> Sequence[WorkerStatus]:
        return self._workers.workers()

    def tasks(self) -> list[tuple[str, TaskInfo]]:
        """(app, task), by name of the task."""
        return [self._tasks[name] for name in sorted(self._tasks)]

    async def reload(self, name: str | None, wait_s: float) -> None:
        """Read the list again, and import all apps again, or one of them. Raises NotFound and ValidationError."""
        try:
            apps = self._read()
        except ConfigError as error:
            raise ValidationError(error.message) from error
        names = [app.name for app in apps] if name is None else [name]
        if name is not None and name not in {app.name for app in apps}:
            self._workers.configure(apps)
            raise NotFound(f"there is no app {name!r}; see `semtask apps ls`", details={"app": name})
        known = {status.app for status in self._workers.statuses()}
        self._workers.configure(apps)
        self._workers.reload([app.name for app in apps if app.name in names and app in known])
        if wait_s > 0:
            await self._workers.settled(names, wait_s)

    def why_not(self, task: str) -> tuple[str, str] | None:
        """Why no job of this task is claimed: a reason of `Waiting` and a text; None if it is offered."""
        if task in self._tasks:
            return None
        statuses = self.statuses
        for status in statuses:
            if task in status.refused:
                return "no_app", f"the app {status.app.name!r} cannot offer this task: {status.refused[task]}"
        failed = [s for s in statuses if s.state is AppState.FAILED]
        owner = next((s for s in failed if any(info.name == task for info in s.tasks)), None)
        if owner is not None:
            return "app_failed", f"the app {owner.app.name!r} cannot be run: {owner.error}"
        if any(s.state is AppState.STARTING for s in statuses):
            return "app_starting", "an app is being imported; it may offer this task"
        if failed:
            others = "; ".join(f"app {s.app.name!r}: {s.error}" for s in failed)
            return "app_failed", f"no app offers the task {task!r}, but not all could be imported. {others}"
        meant = self._meant(task)
        text = f"no app offers the task {task!r}{meant}, so nothing can run it: semtask up --app package.module:app"
        return "no_app", text

    def _meant(self, task: str) -> str:
        """The same function of a module of another name: `jobs:send` was enqueued, `package.jobs:send` is offered."""
        module, _, function = task.partition(":")
        for name, (app, _) in self._tasks.items():
            other, _, same = name.partition(":")
            if (
                function
                and same == function
                and (f".{other}".endswith(f".{module}") or f".{module}".endswith(f".{other}"))
            ):
                return f" (the app {app!r} has {name!r})"
        return ""
