"""A Starlette application, and the tasks that it enqueues."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from semtask import Semantica
from semtask.contrib.starlette import BackgroundJobs, get_client, lifespan

tasks = Semantica()


@tasks.task
def shout(text: str) -> tuple[str, int]:
    return text.upper(), os.getpid()


async def enqueue(request: Request) -> JSONResponse:
    handle = await BackgroundJobs().enqueue(shout, request.query_params["text"])
    return JSONResponse({"job_id": handle.id})


async def result(request: Request) -> JSONResponse:
    job = await get_client(request).get_job(request.query_params["job_id"], include=["result"])
    return JSONResponse({"state": job.state, "result": job.result})


async def wait(request: Request) -> JSONResponse:
    return JSONResponse(await shout.handle(request.query_params["job_id"]))


async def wrong(request: Request) -> JSONResponse:
    await BackgroundJobs().enqueue(print, "no task")  # type: ignore[arg-type]
    return JSONResponse(None)


ROUTES = [Route(f"/{endpoint.__name__}", endpoint) for endpoint in (enqueue, result, wait, wrong)]


@asynccontextmanager
async def inner(app: Any) -> AsyncIterator[Mapping[str, Any]]:
    yield {"own": "state"}


def application(*, up: bool = False) -> Starlette:
    return Starlette(routes=ROUTES, lifespan=lifespan(tasks, up=up, inner=inner))
