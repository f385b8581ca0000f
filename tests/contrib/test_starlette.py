from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from semtask.testing import inline, private_daemon
from tests.contrib.asgi import Server, StartupFailed
from tests.contrib.web import application, tasks
from tests.daemon.rig import processes_of


def test_requests_enqueue_and_read_results_of_a_real_daemon(tmp_path: Path) -> None:
    async def requests() -> None:
        opened = set(os.listdir("/proc/self/fd"))
        async with Server(application(up=True)).running() as server:
            assert server.state["own"] == "state"
            job_id = (await server.get("/enqueue", "text=hello"))["job_id"]
            text, pid = await server.get("/wait", f"job_id={job_id}")
            assert text == "HELLO"
            assert pid != os.getpid()
            assert await server.get("/result", f"job_id={job_id}") == {"state": "DONE", "result": ["HELLO", pid]}
        assert set(os.listdir("/proc/self/fd")) == opened  # its connections are closed; another run opens others
        async with Server(application()).running() as server:
            assert (await server.get("/result", f"job_id={job_id}"))["state"] == "DONE"

    with private_daemon(tmp_path / "home") as daemon:
        daemon(tasks)
        asyncio.run(requests())
    assert not processes_of(tmp_path)


def test_a_daemon_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    async def start() -> None:
        async with Server(application(up=True)).running():
            pass

    with tasks.connected_to(tmp_path), pytest.raises(StartupFailed, match="no daemon answers"):
        asyncio.run(start())


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    async def request() -> None:
        async with Server(application()).running() as server:
            await server.get("/wrong")

    with pytest.raises(TypeError, match="print> is no task, so it cannot be run outside of this process"):
        asyncio.run(request())


def test_an_application_without_the_lifespan_is_told_so(tmp_path: Path) -> None:
    from starlette.applications import Starlette

    from tests.contrib.web import ROUTES

    with pytest.raises(RuntimeError, match="give it lifespan="):
        asyncio.run(Server(Starlette(routes=ROUTES)).get("/result", "job_id=x"))


def test_the_inline_engine_stands_in_for_the_daemon(tmp_path: Path) -> None:
    async def request() -> object:
        async with Server(application(up=True)).running() as server:
            job_id = (await server.get("/enqueue", "text=hello"))["job_id"]
            return await server.get("/wait", f"job_id={job_id}")

    with inline(tmp_path):
        assert asyncio.run(request()) == ["HELLO", os.getpid()]
