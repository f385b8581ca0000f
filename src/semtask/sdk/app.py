"""The app: what a program makes once, to define tasks with and to enqueue them through."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, overload

from semtask.client.calls import Call
from semtask.protocol.enqueue import Enqueued
from semtask.sdk.command import Stderr, StrPath, Wish, command_call
from semtask.sdk.connection import Connection
from semtask.sdk.handle import JobHandle
from semtask.sdk.keywords import EnqueueOptions, TaskKeywords
from semtask.sdk.naming import Unreachable, name_of, require_task
from semtask.sdk.options import JobOptions
from semtask.sdk.results import CompletedCommand, any_of, command_of
from semtask.sdk.task import AsyncTask, Task, TaskDecorator
from semtask.tasks.options import TaskOptions
from semtask.tasks.registry import Registry, TaskDefinition, require_name
from semtask.tasks.source import source_of

if TYPE_CHECKING:
    from semtask.client.async_client import AsyncClient
    from semtask.sdk.embedded import Embedded

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_PROJECT = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


class Semantica:
    """Tasks, and the way to the daemon that runs them. Threads, event loops and forked children may share it.

    Nothing is opened before the first request. `home` and `autostart` go before the settings; `url`
    (http://127.0.0.1:port) before SEMANTICA_RPC_URL and the unix socket of the home. Where no daemon answers, the
    first request starts one, unless `autostart` or the settings say otherwise.

    A job runs only in the project that enqueued it, so that two projects may have tasks of one name: a task is the same
    if the same file defines it. Where it lies in another folder for those that enqueue, or after a new release, give
    `project`, any name, in both.
    """

    def __init__(
        self,
        home: StrPath | None = None,
        url: str | None = None,
        autostart: bool | None = None,
        *,
        project: str | None = None,
    ) -> None:
        if url is not None and not isinstance(url, str):
            raise TypeError(f"url must be a str such as http://127.0.0.1:9527, not {url!r:.100}")
        if project is not None and not _PROJECT.fullmatch(project):
            raise ValueError(f"a project is named with 1 to 64 letters, digits, _, - and dots, not {project!r:.100}")
        self.registry = Registry()
        self._project = project
        self._connection = Connection(home, url, autostart, registry=self.registry)

    def __repr__(self) -> str:
        return f"<Semantica app with {len(self.registry)} task{'s' * (len(self.registry) != 1)}>"

    def close(self) -> None:
        """Close the connections of all threads and event loops. The next request opens another one."""
        self._connection.close()

    def send(self, call: Call[T]) -> T:
        """The answer to any request that `client/calls.py` can make. Raises what `Client` raises."""
        return self._connection.send(call)

    async def asend(self, call: Call[T]) -> T:
        return await self._connection.asend(call)

    def aclient(self) -> AsyncClient:
        """The client of this event loop: a method for everything that the daemon can be asked."""
        return self._connection.aclient()

    def connected_to(self, home: StrPath) -> AbstractContextManager[None]:
        """Meanwhile speak to the daemon of this home, whatever the environment says, and start none."""
        return self._connection.moved_to(home)

    def embedded(self, path: StrPath | None = None, *, module: str | None = None) -> Embedded:
        """A daemon of this program's own, for a script or a notebook: `with app.embedded("state"): ...`.

        It is a real one, with real processes and a home of its own, the folder `path`, where jobs that have not ended
        go on at the next start; without one a temporary folder, which goes in the end. It ends with this process,
        however that ends. The app speaks to it meanwhile. Its workers import the module that holds the app, or
        `module` ("package.module:attribute"); so a script needs `if __name__ == "__main__":`, and the tasks of a
        notebook belong in a module that it imports.
        """
        from semtask.sdk.embedded import Embedded

        return Embedded(self, path, module)

    # --- tasks ------------------------------------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]  # the first one that fits is meant
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        concurrency: int | None = None,
        **options: Unpack[TaskKeywords],
    ) -> TaskDecorator: ...

    def task(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Make a function a task: `@app.task`, or `@app.task(queue="index", retry=3)`.

        Durations are seconds or timedelta. `retry`: a Retry, or the executions allowed. `timeout` is for each attempt;
        `deadline` for the whole job, counted from its enqueue; `ttl` for the time until it starts; `grace` for its end
        once it is being stopped. `on_interrupt="fail"`: it is started at most once, even if the daemon dies under it.
        `retry_on_crash`: it may be tried again when its process dies. `concurrency`: how many of its jobs may run
        simultaneously.

        Its name, which its jobs are stored under, is `module:qualname` unless `name` gives another. Raises
        DuplicateTask for a name that is taken, ValueError for a wrong option or a function without a name.
        """
        name = options.pop("name", None)
        if name is not None:
            require_name(name)
        wanted = TaskOptions.of(**options)

        def decorate(function: Callable[..., Any]) -> Task[..., Any] | AsyncTask[..., Any]:
            require_task(function)
            is_async = inspect.iscoroutinefunction(function)
            source = self._project or source_of(function)
            try:
                found, unreachable = name_of(function) if name is None else name, None
            except Unreachable as error:
                found, unreachable = f"{function.__module__}:{function.__qualname__}", str(error)
            definition = TaskDefinition(found, function, is_async, wanted, source, unreachable)
            self.registry.add(definition)
            kind = AsyncTask[..., Any] if is_async else Task[..., Any]
            return kind(definition, self._connection, JobOptions.of_task(wanted))

        return decorate if function is None else decorate(function)

    # --- commands ---------------------------------------------------------------------------------------------------

    def run(
        self,
        *argv: StrPath,
        env: Mapping[str, str] | None = None,
        cwd: StrPath | None = None,
        stderr: Stderr = "merged",
        name: str | None = None,
        access: Sequence[str] = (),
        sandbox: Wish | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> JobHandle[CompletedCommand]:
        """Run a command as a durable job: `app.run("make", "test", timeout=600)`.

        It gets the working directory (or `cwd`), the umask and the allowed part of the environment of its caller, and
        `env` on top. Its result is a CompletedCommand, whatever the exit code; result() raises JobError where it did
        not run to its end. `name` is its job_type, else that of the program. `access` are scopes of
        the token that it gets in SEMANTICA_TOKEN while it runs: read, enqueue, command, admin. `sandbox` is a level
        ("limits", "landlock", "bwrap"), or a mapping with `level` and what it may have: `read`, `write`, `network`,
        and limits.
        """
        call = self._command(argv, options, env=env, cwd=cwd, stderr=stderr, name=name, access=access, sandbox=sandbox)
        return self._handle(self._connection.send(call))

    async def arun(
        self,
        *argv: StrPath,
        env: Mapping[str, str] | None = None,
        cwd: StrPath | None = None,
        stderr: Stderr = "merged",
        name: str | None = None,
        access: Sequence[str] = (),
        sandbox: Wish | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> JobHandle[CompletedCommand]:
        call = self._command(argv, options, env=env, cwd=cwd, stderr=stderr, name=name, access=access, sandbox=sandbox)
        return self._handle(await self._connection.asend(call))

    def _command(self, argv: tuple[StrPath, ...], options: EnqueueOptions, **how: Any) -> Call[Enqueued]:
        params = JobOptions().using(**options).counted_from(self._connection.now_ms())
        return command_call(argv, self._connection.settings, params, **how)

    def _handle(self, job: Enqueued) -> JobHandle[CompletedCommand]:
        return JobHandle(self._connection, job.job_id, command_of, deduplicated=job.deduplicated)

    # --- jobs -------------------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> JobHandle[Any]:
        """A job by its id. Its result is plain JSON, or a CompletedCommand; `task.handle(job_id)` knows its type."""
        return JobHandle(self._connection, job_id, any_of)
