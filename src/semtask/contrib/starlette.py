"""semtask in Starlette and FastAPI applications.

app = FastAPI(lifespan=lifespan(jobs.app))

@app.post("/index")
async def index(path: str, background: Annotated[BackgroundJobs, Depends()]) -> str:
    return (await background.enqueue(jobs.index_file, path)).id
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, ParamSpec, TypeVar

from starlette.requests import HTTPConnection

from semtask.client import calls
from semtask.client.async_client import AsyncClient
from semtask.sdk.app import Semantica
from semtask.sdk.handle import JobHandle
from semtask.sdk.task import AsyncTask, Task

P = ParamSpec("P")
R = TypeVar("R")
Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]
AnyLifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]

_STATE = "semantica"


def lifespan(semantica: Semantica, *, up: bool = False, inner: AnyLifespan | None = None) -> Lifespan:
    """A lifespan that gives the app to `get_client`, and closes its connections in the end.

    `up`: the daemon is looked for, and started unless the settings say otherwise, before the first request is taken;
    DaemonUnavailable then ends the start. `inner` is another lifespan, which lives inside of this one.
    """

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with AsyncExitStack() as entered:
            entered.callback(semantica.close)
            if up:
                await semantica.asend(calls.stats())
            state = None if inner is None else await entered.enter_async_context(inner(app))
            yield {**(state or {}), _STATE: semantica}

    return run


def get_client(connection: HTTPConnection) -> AsyncClient:
    """The client of the app that `lifespan` was given, for a request or a websocket; FastAPI: `Depends(get_client)`.

    Raises RuntimeError without that lifespan.
    """
    semantica = getattr(connection.state, _STATE, None)
    if not isinstance(semantica, Semantica):
        raise RuntimeError(
            "the application has no semtask app: give it lifespan=semtask.contrib.starlette.lifespan(app)"
        )
    return semantica.aclient()


class BackgroundJobs:
    """In place of Starlette's BackgroundTasks: what is enqueued is stored before the response is sent, and is run even
    if this process dies.
    """

    async def enqueue(self, task: Task[P, R] | AsyncTask[P, R], /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """As task.aenqueue(...). Raises TypeError for a function that is no task."""
        if not isinstance(task, Task | AsyncTask):
            raise TypeError(
                f"{task!r} is no task, so it cannot be run outside of this process: decorate it with @app.task"
            )
        return await task.aenqueue(*args, **kwargs)
