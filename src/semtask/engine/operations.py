"""What a client can ask for: one method per API method. Takes and returns the messages of the protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack

from msgspec import UNSET, UnsetType

from semtask.engine.admission import Admission
from semtask.engine.apps import Apps
from semtask.engine.changes import Changes
from semtask.engine.command_gate import CommandGate
from semtask.engine.disk import DiskWatch
from semtask.engine.dispatcher import Dispatcher
from semtask.engine.explain import Explain
from semtask.engine.floors import SandboxFloors
from semtask.engine.janitor import Janitor
from semtask.engine.slots import Slots
from semtask.engine.tailing import Tailing
from semtask.engine.throttle import LoadWatch
from semtask.engine.views import app_view, job_view, queue_view, task_view, worker_view
from semtask.engine.waits import NOBODY, Waiter, Waits
from semtask.errors import Conflict, NotFound, Unauthorized, ValidationError
from semtask.host.clocks import Clock
from semtask.model.job import Attempt, Durability, ExecutionMode, Job, NewJob
from semtask.model.scope import Scope
from semtask.model.state import FINAL, State, StopReason
from semtask.protocol.admin import (
    Maintained,
    MaintenanceParams,
    StartDaemonParams,
    StartedDaemon,
    Stats,
    SystemView,
    ThrottleView,
)
from semtask.protocol.apps import Apps as AppList
from semtask.protocol.apps import ReloadAppsParams, Tasks, Workers
from semtask.protocol.enqueue import (
    CommandPayload,
    Enqueued,
    EnqueuedMany,
    EnqueueManyParams,
    EnqueueParams,
    command_of,
)
from semtask.protocol.fields import NoParams
from semtask.protocol.jobs import (
    Cancelled,
    CancelParams,
    GetJobParams,
    JobView,
    QueriedJobs,
    QueryJobsParams,
    Retried,
    RetriedJob,
    RetryParams,
    Waited,
    WaitParams,
)
from semtask.protocol.logs import TailedChunk, TailedLines, TailParams
from semtask.protocol.queues import ConfigureQueueParams, QueueParams, Queues, QueueView
from semtask.store.base import Store
from semtask.store.requests import JobFilter, QueueRow, Running, StopRequest, StopSelector
from semtask.telemetry import counters
from semtask.telemetry.events import Committed, Events

RETRIED_AT_ONCE = 200
SUBPROCESS = ExecutionMode.SUBPROCESS


class Operations:
    """The verbs of the engine, for the API. Errors are those of `errors.py`."""

    def __init__(
        self,
        *,
        store: Store,
        dispatcher: Dispatcher,
        explain: Explain,
        apps: Apps,
        slots: Slots,
        changes: Changes,
        admission: Admission,
        gate: CommandGate,
        floors: SandboxFloors,
        tailing: Tailing,
        waits: Waits,
        load: LoadWatch,
        disk: DiskWatch,
        janitor: Janitor,
        stop_running: Callable[[Running], None],
        start_daemon: Callable[[StartDaemonParams], Awaitable[StartedDaemon]],
        clock: Clock,
        events: Events,
        artifacts_dir: str,
        home: str,
        version: str,
        pid: int,
        cpu_count: int,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._explain = explain
        self._apps = apps
        self._slots = slots
        self._changes = changes
        self._admission = admission
        self._gate = gate
        self._floors = floors
        self._tailing = tailing
        self._waits = waits
        self._load = load
        self._disk = disk
        self._janitor = janitor
        self._stop_running = stop_running
        self._start_daemon = start_daemon
        self._clock = clock
        self._events = events
        self._artifacts_dir = artifacts_dir
        self._home = home
        self._version = version
        self._pid = pid
        self._cpu_count = cpu_count
        self._started = clock.monotonic()
        self.accepting = True

    # --- enqueue -----------------------------------------------------------------------------------------------------

    async def enqueue(self, params: EnqueueParams) -> Enqueued:
        job = self._admission.admit(params)
        return (await self._insert([job], {0: params.command} if job.execution_mode is SUBPROCESS else {}))[0]

    async def enqueue_many(self, params: EnqueueManyParams) -> EnqueuedMany:
        jobs = self._admission.admit_many(params.jobs)
        commands = {n: params.jobs[n].command for n, job in enumerate(jobs) if job.execution_mode is SUBPROCESS}
        return EnqueuedMany(jobs=await self._insert(jobs, commands))

    async def _insert(self, jobs: Sequence[NewJob], commands: Mapping[int, CommandPayload]) -> list[Enqueued]:
        """`commands` are those of the jobs that are one, by their place."""
        self._disk.require_room()
        self._floors.check(jobs)
        await self._gate.check(commands, of=len(jobs))
        durable = any(job.durability is Durability.FSYNC for job in jobs)
        # The claim is submitted in the same turn of the loop as the insert: a free slot then costs no second commit.
        for mode in ExecutionMode:
            if queues := {job.queue for job in jobs if job.execution_mode is mode and job.run_at is None}:
                self._dispatcher.wake(queues, mode)
        asked = self._clock.monotonic()
        inserted = await self._store.insert(jobs, durable=durable)
        self._events.emit(Committed(self._clock.monotonic() - asked))
        for one in inserted:
            for running in one.stopping:
                self._stop_running(running)
        return [
            Enqueued(
                job_id=one.job_id,
                state=one.state,
                queue=one.queue,
                generation=one.generation,
                deduplicated=one.deduplicated,
                superseded=one.superseded,
            )
            for one in inserted
        ]

    # --- look --------------------------------------------------------------------------------------------------------

    async def get_job(self, params: GetJobParams) -> JobView:
        job = await self._job(params.job_id)
        attempts = await self._store.attempts(job.job_id) if "attempts" in params.include else None
        return self._view(
            job,
            with_payload=bool({"payload", "secrets"}.intersection(params.include)),
            with_secrets="secrets" in params.include,
            with_result="result" in params.include,
            attempts=attempts,
        )

    async def query_jobs(self, params: QueryJobsParams) -> QueriedJobs:
        where = params.filter
        page = await self._store.query(
            JobFilter(
                state=where.state,
                queue=where.queue,
                job_type=where.job_type or None,
                tag=where.tag or None,
                chain_group_id=where.chain_group_id or None,
                created_after=None if where.created_after is UNSET else where.created_after,
                subject_key_prefix=where.subject_key_prefix or None,
                id_suffix=where.id_suffix or None,
            ),
            newest_first=params.sort == "newest",
            limit=params.limit,
            after_seq=_seq_of(params.cursor) if params.cursor else None,
        )
        return QueriedJobs(
            items=[self._view(job) for job in page.items],
            next_cursor=None if page.next_seq is None else _cursor_of(page.next_seq),
        )

    async def wait(self, params: WaitParams, waiter: Waiter = NOBODY) -> Waited:
        """Woken by commits. The jobs are read after the watch has begun, so no end is missed.

        The job for which the `waiter` waits counts in no limit meanwhile.
        """
        job_ids = set(params.job_ids)
        enough = 1 if params.mode == "any" else len(job_ids)
        with self._changes.watch_ends(job_ids, enough=enough) as watch, ExitStack() as waiting:
            jobs = await self._store.get_many(params.job_ids)
            missing = [job_id for job_id in params.job_ids if job_id not in jobs]
            if missing:
                raise NotFound(f"there is no job {missing[0]}", details={"job_ids": missing})
            watch.seen(job_id for job_id, job in jobs.items() if job.state in FINAL)
            live = [job for job in jobs.values() if job.state not in FINAL]
            if (missing_ends := enough - (len(jobs) - len(live))) > 0 and params.timeout_ms:
                waiting.enter_context(self._waits.during(waiter, live, enough=missing_ends))
            met = await watch.changed(params.timeout_ms / 1000)
            jobs.update(await self._store.get_many([job.job_id for job in live]))
            with_result = "result" in params.include
            views = [self._view(jobs[job_id], with_result=with_result) for job_id in params.job_ids]
        return Waited(jobs=views, timed_out=not met)

    async def tail(self, params: TailParams, waiter: Waiter = NOBODY) -> TailedLines | TailedChunk:
        return await self._tailing.tail(params, waiter)

    # --- change ------------------------------------------------------------------------------------------------------

    async def cancel(self, params: CancelParams) -> Cancelled:
        given = [name for name in ("job_id", "tag", "chain_group_id") if getattr(params, name) is not UNSET]
        if len(given) != 1:
            raise ValidationError(
                "give exactly one of `job_id`, `tag` and `chain_group_id`", details={"parameter": "job_id"}
            )
        stopped = await self._store.stop(
            StopRequest(
                selector=StopSelector(**{given[0]: getattr(params, given[0])}),
                reason=StopReason.CANCEL,
                now=self._clock.now_ms(),
                grace_ms=None if params.grace_ms is UNSET else params.grace_ms,
            )
        )
        for running in stopped.stopping:
            self._stop_running(running)
        count = stopped.ended + len(stopped.stopping)
        if given[0] != "job_id":
            return Cancelled(cancelled=count > 0, cancelled_count=count)
        if not stopped.found:
            raise NotFound(f"there is no job {params.job_id}", details={"job_id": params.job_id})
        if stopped.final_state is not None:
            return Cancelled(
                cancelled=False, cancelled_count=0, job_id=params.job_id or None, ended_as=stopped.final_state
            )
        # A job that is already being cancelled is cancelled all the same.
        return Cancelled(cancelled=True, cancelled_count=1, job_id=params.job_id or None)

    async def retry(self, params: RetryParams, scopes: frozenset[Scope]) -> Retried:
        """`scopes` are those of the caller, who may give none to a job that they have not."""
        given = [name for name in ("job_id", "tag", "chain_group_id", "queue") if getattr(params, name) is not UNSET]
        if len(given) != 1:
            raise ValidationError(
                "give exactly one of `job_id`, `tag`, `chain_group_id` and `queue`", details={"parameter": "job_id"}
            )
        if params.job_id:
            return await self._retry_one(params.job_id, scopes)
        page = await self._store.query(
            JobFilter(
                state=[State.FAILED],
                tag=params.tag or None,
                chain_group_id=params.chain_group_id or None,
                queue=[params.queue] if params.queue else [],
                not_retried=True,
            ),
            newest_first=False,
            limit=RETRIED_AT_ONCE,
            after_seq=None,
        )
        copies = await self._copy(page.items, scopes)
        return Retried(retried_count=len(copies), more=page.next_seq is not None, jobs=copies)

    async def _retry_one(self, job_id: str, scopes: frozenset[Scope]) -> Retried:
        job = await self._job(job_id)
        if job.state not in FINAL:
            raise Conflict(
                f"job {job_id} has not ended, it is {job.state}: only a finished job can be retried",
                details={"job_id": job_id, "state": job.state},
            )
        [copy] = await self._copy([job], scopes)
        return Retried(retried_count=1, more=False, jobs=[copy], job_id=copy.job_id, retry_of=job_id)

    async def _copy(self, jobs: Sequence[Job], scopes: frozenset[Scope]) -> list[RetriedJob]:
        if not jobs:
            return []
        commands = {n: command_of(job.payload) for n, job in enumerate(jobs) if job.execution_mode is SUBPROCESS}
        for n, command in commands.items():
            _require_grantable(jobs[n], command, scopes)
        copies = await self._insert([self._admission.copy(job) for job in jobs], commands)
        return [RetriedJob(job_id=new.job_id, retry_of=old.job_id) for new, old in zip(copies, jobs, strict=True)]

    async def list_queues(self, params: NoParams) -> Queues:
        del params
        return Queues(queues=[self._queue(row) for row in await self._store.queues()])

    async def pause_queue(self, params: QueueParams) -> QueueView:
        return await self._configured(await self._store.configure_queue(params.queue, paused=True))

    async def resume_queue(self, params: QueueParams) -> QueueView:
        return await self._configured(await self._store.configure_queue(params.queue, paused=False))

    async def configure_queue(self, params: ConfigureQueueParams) -> QueueView:
        row = await self._store.configure_queue(
            params.queue,
            concurrency="keep" if isinstance(params.concurrency, UnsetType) else params.concurrency,
            queue_class=params.class_ or None,
            sandbox=params.sandbox or None,
        )
        return await self._configured(row)

    async def stats(self, params: NoParams) -> Stats:
        del params
        rows = await self._store.queues()
        total = {state: sum(row.counts[state] for row in rows) for state in State}
        load = self._load.load
        return Stats(
            version=self._version,
            pid=self._pid,
            total_jobs=sum(total.values()),
            scheduled_jobs=total[State.SCHEDULED],
            queued_jobs=total[State.QUEUED],
            running_jobs=total[State.RUNNING],
            done_jobs=total[State.DONE],
            failed_jobs=total[State.FAILED],
            db_size_bytes=await self._store.size_bytes(),
            uptime_seconds=round(self._clock.monotonic() - self._started, 3),
            accepting=self.accepting,
            queues=[self._queue(row) for row in rows],
            system=SystemView(
                cpu_count=self._cpu_count,
                max_processes=self._dispatcher.max_processes,
                running_processes=self._slots.processes,
                cpu_usage=load.cpu if load else None,
                memory_usage=load.memory if load else None,
            ),
            counters=dict.fromkeys(counters.NAMES, 0) | await self._store.counters(),
            throttle=ThrottleView(active=self._load.active, reason=self._load.reason, since=self._load.since),
            disk=self._disk.view(),
            commands_held=self._gate.problem,
            home=self._home,
        )

    async def maintenance(self, params: MaintenanceParams) -> Maintained:
        return await self._janitor.maintain(force_vacuum=params.force_vacuum)

    async def start_daemon(self, params: StartDaemonParams) -> StartedDaemon:
        return await self._start_daemon(params)

    # --- apps ---------------------------------------------------------------------------------------------------------

    async def list_apps(self, params: NoParams) -> AppList:
        del params
        workers = Counter(worker.app for worker in self._apps.workers)
        return AppList(apps=[app_view(status, workers[status.app.name]) for status in self._apps.statuses])

    async def reload_apps(self, params: ReloadAppsParams) -> AppList:
        await self._apps.reload(params.app or None, params.wait_ms / 1000)
        return await self.list_apps(NoParams())

    async def list_tasks(self, params: NoParams) -> Tasks:
        del params
        return Tasks(tasks=[task_view(app, task) for app, task in self._apps.tasks()])

    async def list_workers(self, params: NoParams) -> Workers:
        del params
        return Workers(workers=[worker_view(worker) for worker in self._apps.workers])

    # --- pieces ------------------------------------------------------------------------------------------------------

    async def _job(self, job_id: str) -> Job:
        job = await self._store.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id}", details={"job_id": job_id})
        return job

    def _view(
        self,
        job: Job,
        *,
        with_payload: bool = False,
        with_secrets: bool = False,
        with_result: bool = False,
        attempts: Sequence[Attempt] | None = None,
    ) -> JobView:
        return job_view(
            job,
            waiting=self._explain.waiting(job),
            log_path=self._tailing.log_path(job),
            artifacts_dir=self._artifacts_dir,
            with_payload=with_payload,
            with_secrets=with_secrets,
            with_result=with_result,
            attempts=attempts,
        )

    def _queue(self, row: QueueRow) -> QueueView:
        return queue_view(row, self._dispatcher.queue_concurrency)

    async def _configured(self, row: QueueRow) -> QueueView:
        self._floors.configure(row)
        self._dispatcher.configure(row)
        return self._queue(row)


def _require_grantable(job: Job, command: CommandPayload, scopes: frozenset[Scope]) -> None:
    missing = set(command.access) - scopes
    if missing:
        raise Unauthorized(
            f"job {job.job_id} was given the access {', '.join(sorted(missing))}, which you have not",
            details={"job_id": job.job_id, "scope": min(missing)},
        )


def _cursor_of(seq: int) -> str:
    return f"s{seq}"


def _seq_of(cursor: str) -> int:
    if cursor[:1] == "s" and cursor[1:].isascii() and cursor[1:].isdigit() and len(cursor) < 20:
        return int(cursor[1:])
    raise ValidationError("`cursor` is not one that this method gave", details={"parameter": "cursor"})
