"""METHODS: the one table of the API that feeds server, client, `rpc.discover` and documents.

A parameter that is part of the contract but not served by this version is no field of the message, but named in
`Method.unserved`: so sending it is refused as any unknown one is, and the error says that a later version has it.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from semtask.errors import Conflict, NotFound, RpcError, Throttled, Unauthorized
from semtask.model.scope import Scope
from semtask.protocol.admin import Maintained, MaintenanceParams, StartDaemonParams, StartedDaemon, Stats
from semtask.protocol.apps import Apps, ReloadAppsParams, Tasks, Workers
from semtask.protocol.enqueue import ENQUEUE_UNSERVED, Enqueued, EnqueuedMany, EnqueueManyParams, EnqueueParams
from semtask.protocol.fields import NoParams, Params
from semtask.protocol.jobs import (
    Cancelled,
    CancelParams,
    GetJobParams,
    JobView,
    QueriedJobs,
    QueryJobsParams,
    Retried,
    RetryParams,
    Waited,
    WaitParams,
)
from semtask.protocol.logs import TailedChunk, TailedLines, TailParams
from semtask.protocol.queues import ConfigureQueueParams, QueueParams, Queues, QueueView


class Method(Struct, frozen=True, kw_only=True):
    """`scope` is what a client needs to call it; a job that is a command needs `command` besides.

    `errors` says when it answers which, besides ValidationError for its parameters and the faults of the daemon (5000
    to 5002).

    `unserved` names parameters that are refused; a dot leads into a nested object, or into each item of a list.

    `operation` is the name of the engine's method; None where the API answers by itself. `told_scopes`: it takes what
    the caller may do besides; `told_waiter`: for which job the caller waits, if for one. `new_work`: refused while the
    daemon is stopping. `waits`: may take long without changing anything, so it ends with its caller.
    """

    name: str
    scope: Scope
    params: type[Params]
    result: Any
    summary: str
    errors: dict[type[RpcError], str]
    operation: str | None = None
    unserved: frozenset[str] = frozenset()
    told_scopes: bool = False
    told_waiter: bool = False
    new_work: bool = False
    waits: bool = False


_NO_JOB = "no stored job has this id"
_DISK_FULL = "the disk is full or fails; it goes on by itself when that is over"
_STOPPING = "the daemon is stopping (with HTTP status 503), or the disk is nearly full, full, or fails"

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            name="dev.enqueue.v1",
            scope=Scope.ENQUEUE,
            params=EnqueueParams,
            result=Enqueued,
            summary="Store a job. Once answered it survives any crash, and with durability=fsync a power cut.",
            errors={
                Conflict: "the key was used for another content, the subject has a live job and on_duplicate is"
                " `reject`, or `source` is not that of the task",
                Throttled: _STOPPING,
            },
            operation="enqueue",
            new_work=True,
            unserved=ENQUEUE_UNSERVED,
        ),
        Method(
            name="dev.enqueue_many.v1",
            scope=Scope.ENQUEUE,
            params=EnqueueManyParams,
            result=EnqueuedMany,
            summary="Store up to 10,000 jobs in one transaction, all or none.",
            errors={
                Conflict: "as dev.enqueue.v1, for any of the jobs; then none is stored",
                Throttled: _STOPPING,
            },
            operation="enqueue_many",
            new_work=True,
            unserved=frozenset(f"jobs.{name}" for name in ENQUEUE_UNSERVED),
        ),
        Method(
            name="dev.get_job.v1",
            scope=Scope.READ,
            params=GetJobParams,
            result=JobView,
            summary="One job.",
            errors={NotFound: _NO_JOB},
            operation="get_job",
        ),
        Method(
            name="dev.query_jobs.v1",
            scope=Scope.READ,
            params=QueryJobsParams,
            result=QueriedJobs,
            summary="Jobs that match a filter, page by page.",
            errors={},
            operation="query_jobs",
        ),
        Method(
            name="dev.wait.v1",
            scope=Scope.READ,
            params=WaitParams,
            result=Waited,
            summary="Wait until any or all of the jobs have ended, or the time is over.",
            errors={NotFound: "one of the jobs is not stored", Throttled: "the daemon is stopping: ask again"},
            operation="wait",
            told_waiter=True,
            waits=True,
        ),
        Method(
            name="dev.cancel.v1",
            scope=Scope.ENQUEUE,
            params=CancelParams,
            result=Cancelled,
            summary="Cancel a job, or all live jobs of a tag or group.",
            errors={
                NotFound: _NO_JOB,
                Throttled: _DISK_FULL,
            },
            operation="cancel",
        ),
        Method(
            name="dev.retry.v1",
            scope=Scope.COMMAND,
            params=RetryParams,
            result=Retried,
            summary="Enqueue a copy of a finished job, or of all failed jobs of a tag, a group or a queue.",
            errors={
                NotFound: _NO_JOB,
                Conflict: "the job has not ended yet; a tag, group or queue without failed jobs is no error",
                Throttled: _STOPPING,
            },
            operation="retry",
            told_scopes=True,
            new_work=True,
        ),
        Method(
            name="logs.tail.v1",
            scope=Scope.READ,
            params=TailParams,
            result=TailedLines | TailedChunk,
            summary="Read the output of a job: the last lines, or bytes from a position on.",
            errors={NotFound: "no stored job has this id, or it has no such attempt"},
            operation="tail",
            told_waiter=True,
            waits=True,
        ),
        Method(
            name="queues.list.v1",
            scope=Scope.READ,
            params=NoParams,
            result=Queues,
            summary="All queues with their counts.",
            errors={},
            operation="list_queues",
        ),
        Method(
            name="queues.pause.v1",
            scope=Scope.ADMIN,
            params=QueueParams,
            result=QueueView,
            summary="Start no more jobs of a queue. It goes on accepting them.",
            errors={Throttled: _DISK_FULL},
            operation="pause_queue",
        ),
        Method(
            name="queues.resume.v1",
            scope=Scope.ADMIN,
            params=QueueParams,
            result=QueueView,
            summary="Start jobs of a queue again.",
            errors={Throttled: _DISK_FULL},
            operation="resume_queue",
        ),
        Method(
            name="queues.configure.v1",
            scope=Scope.ADMIN,
            params=ConfigureQueueParams,
            result=QueueView,
            summary="Set how many jobs of a queue may run simultaneously, and the weakest sandbox of its commands.",
            errors={Throttled: _DISK_FULL},
            operation="configure_queue",
        ),
        Method(
            name="admin.stats.v1",
            scope=Scope.READ,
            params=NoParams,
            result=Stats,
            summary="Counts, queues, limits and counters.",
            errors={},
            operation="stats",
        ),
        Method(
            name="admin.maintenance.v1",
            scope=Scope.ADMIN,
            params=MaintenanceParams,
            result=Maintained,
            summary="Delete what is over its retention now, and give free space back.",
            errors={},
            operation="maintenance",
        ),
        Method(
            name="admin.start_daemon.v1",
            scope=Scope.ADMIN,
            params=StartDaemonParams,
            result=StartedDaemon,
            summary="Start the daemon of another home for a job: one that the job started itself would end with it.",
            errors={Unauthorized: "the client came with a token"},
            operation="start_daemon",
        ),
        Method(
            name="apps.list.v1",
            scope=Scope.READ,
            params=NoParams,
            result=Apps,
            summary="The apps of this daemon, and whether they could be imported.",
            errors={},
            operation="list_apps",
        ),
        Method(
            name="apps.reload.v1",
            scope=Scope.ADMIN,
            params=ReloadAppsParams,
            result=Apps,
            summary="Read the list of apps again and import the apps again; running jobs end in their old workers.",
            errors={NotFound: "there is no such app", Throttled: "the daemon is stopping"},
            operation="reload_apps",
            waits=True,
        ),
        Method(
            name="tasks.list.v1",
            scope=Scope.READ,
            params=NoParams,
            result=Tasks,
            summary="The registered tasks with their signatures.",
            errors={},
            operation="list_tasks",
        ),
        Method(
            name="workers.list.v1",
            scope=Scope.READ,
            params=NoParams,
            result=Workers,
            summary="The worker processes.",
            errors={},
            operation="list_workers",
        ),
        Method(
            name="rpc.discover",
            scope=Scope.READ,
            params=NoParams,
            result=dict[str, Any],
            summary="This API as an OpenRPC document.",
            errors={},
        ),
    )
}
