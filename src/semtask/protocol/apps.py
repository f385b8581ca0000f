"""What is said about apps, their tasks and their workers: apps.*, tasks.* and workers.*."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from semtask.model.app import AppState
from semtask.protocol.fields import Params, Result


class ReloadAppsParams(Params):
    """Read the list of apps again and replace the workers of all of them, or of the one named `app`.

    With `wait_ms` the answer waits until each of them was imported or failed.
    """

    app: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    wait_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0


class AppView(Result):
    """An app, whether its tasks can be run, and why not. `refused` are tasks that cannot be offered, and why."""

    name: str
    module: str
    directory: str
    python: str
    state: AppState
    tasks: int
    workers: int
    refused: dict[str, str] = {}
    error: str | None = None
    traceback: str | None = None
    conflict_with: str | None = None


class Apps(Result):
    """All apps that the daemon knows."""

    apps: list[AppView]


class TaskView(Result):
    """A registered task. `parameters` is the JSON schema of its payload; `defaults` are options of dev.enqueue.v1 that
    the SDK and the command line send for it."""

    name: str
    app: str
    is_async: bool
    parameters: dict[str, Any]
    returns: dict[str, Any] | None = None
    doc: str | None = None
    defaults: dict[str, Any] = {}
    concurrency: int | None = None
    source: str | None = None


class Tasks(Result):
    """The tasks of all apps that could be imported."""

    tasks: list[TaskView]


class WorkerView(Result):
    """A worker process. `running` are the jobs it has; of a sync worker the first one runs."""

    worker: str
    app: str
    pid: int | None
    state: Literal["starting", "idle", "busy", "leaving"]
    kind: Literal["sync", "async"] | None
    running: list[str]
    jobs_done: int
    started_at: int
    python: str | None = None


class Workers(Result):
    """The worker processes of all apps."""

    workers: list[WorkerView]
