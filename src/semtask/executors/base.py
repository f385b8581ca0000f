"""The ports of the executors: they run attempts and say, as values, how these ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from semtask.host.standing import Standing
from semtask.launch.sandbox import Sandbox
from semtask.model.app import App, AppState
from semtask.model.job import Job, ProcessIdentity, ProgressNote, Taker
from semtask.model.outcome import Outcome
from semtask.model.state import StopReason
from semtask.protocol.frames import TaskInfo


class CommandSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a command attempt needs; nothing of it is looked up later.

    `env` is the whole environment, the nonce included. `grace_ms` is the time between SIGTERM and SIGKILL. With an
    `executable` that file is started, else what argv[0] finds in the PATH of `env`. The places of `sandbox` that are
    not the job's are filled in by the executor.
    """

    job_id: str
    claim_no: int
    argv: Sequence[str]
    env: Mapping[str, str]
    working_dir: str
    umask: int
    split_stderr: bool
    grace_ms: int
    nonce: str
    executable: str | None = None
    sandbox: Sandbox | None = None
    standing: Standing = Standing()


class Executor(Protocol):
    async def run(self, spec: CommandSpec, on_started: Callable[[ProcessIdentity], None]) -> Outcome:
        """Run the attempt and return when every process of it is verified gone and the outcome is known.

        `on_started` is called at most once, on the event loop, with the identity of the command.
        Never raises for anything the job did; what cannot be started is an Outcome as well.
        """
        ...

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> None:
        """Ask the attempt to end. May be called again; the grace can only get shorter. Unknown ones are ignored."""
        ...

    def job_of(self, pid: int) -> tuple[str, int] | None:
        """The attempt to which this process belongs, whatever its environment says; None if there is none."""
        ...


class KillFailed(Protocol):
    """Called when processes of an attempt survived SIGKILL (state D): the attempt keeps its slot until they go."""

    def __call__(self, job_id: str, claim_no: int) -> None: ...


class TaskEnd(NamedTuple):
    """The end of an attempt of a task, with all of it verified gone. `ran_s` is None if it was not executed."""

    job: Job
    outcome: Outcome
    ran_s: float | None


class AppStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An app as its workers know it. `tasks` are those of the last worker that could import it; `refused` are tasks of
    it that cannot be offered, and why. `conflict_with` names the app that offers one of its tasks already.
    """

    app: App
    state: AppState
    tasks: Sequence[TaskInfo] = ()
    refused: Mapping[str, str] = {}
    error: str | None = None
    traceback: str | None = None
    conflict_with: str | None = None


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process. Times are epoch ms; `running` are the ids of the jobs it has, the first one runs if sync."""

    worker: str
    app: str
    pid: int | None
    state: Literal["starting", "idle", "busy", "leaving"]
    kind: Literal["sync", "async"] | None
    running: Sequence[str]
    jobs_done: int
    started_at: int
    python: str | None = None


class TaskListener(Protocol):
    """What the engine hears from the executor of tasks, on the event loop."""

    def tasks_ended(self, ends: Sequence[TaskEnd]) -> None:
        """These attempts are over. `outcome.executed` false: they may be claimed again immediately."""
        ...

    def task_progress(self, notes: Sequence[ProgressNote]) -> None: ...

    def task_blocked(self, job_id: str, claim_no: int, on: Sequence[str]) -> None:
        """The job waits for others (none: goes on). While it waits its worker counts in no limit."""
        ...

    def task_kill_failed(self, job_id: str, claim_no: int) -> None:
        """The worker of this job survives SIGKILL."""
        ...

    def room_changed(self) -> None:
        """A worker was started or has left, or another app is to be offered first. Of a worker that has become free
        `tasks_ended` tells.
        """
        ...

    def app_changed(self, status: AppStatus) -> None: ...


class TaskExecutor(Protocol):
    """Runs tasks in the workers of their apps."""

    def takers(self, new_processes: int, limited: Collection[str]) -> Sequence[Taker]:
        """What could be claimed now. At most `new_processes` sync workers that are idle may begin.

        In the order in which the store shall serve them: first one job for each idle worker, then work ahead. Tasks
        in `limited` are never taken ahead. What it says holds until the next call of any method, so one claim at a
        time is made with it.
        """
        ...

    def start(self, worker: str, jobs: Sequence[Job]) -> None:
        """Hand claimed jobs, whose claims are committed, to the worker that `Taker.facts` named.

        A worker that has died since then reports them as never_ran.
        """
        ...

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> None:
        """Ask a job to end. A job that has not begun is recalled and reported as never_ran. May be called again."""
        ...

    def job_of(self, worker: str, job_id: str, pid: int) -> tuple[str, int] | None:
        """The job (with its claim_no) for which a process of this worker acts; None if that cannot be told.

        `job_id` is what the process says, `pid` who it is, if that is known. Without a `worker` it is looked for among
        those that the process comes from.
        """
        ...

    def waits_outside(self, key: tuple[str, int], *, waits: bool) -> None:
        """A process of this job waits for another job, or goes on. It need not be a job of a worker."""
        ...

    def shortage(self, tasks: Collection[str]) -> None:
        """Jobs of these tasks could run, had their app been offered with a worker that has room: see to it."""
        ...

    @property
    def busy_processes(self) -> int:
        """How many sync workers have a job that is not blocked."""
        ...
