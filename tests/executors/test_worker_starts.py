"""Workers that do not start: what people are told, and how often it is tried again."""

from __future__ import annotations

import asyncio
import re
import sys
import time
import venv
from pathlib import Path

import pytest

from semtask.executors.base import AppStatus
from semtask.model.app import App, AppState
from tests.executors.rig import until, with_nonce
from tests.executors.task_rig import SYNC, TaskRig, task_rig


async def failure(r: TaskRig, app: App) -> AppStatus:
    await r.use(app, ready=False)
    status = r.status(app.name)
    assert status.state is AppState.FAILED
    assert status.error is not None
    assert "\n" not in status.error
    assert r.told[app.name][-1] == status
    await until(lambda: r.folders() == [], "the end of the worker")
    return status


@pytest.mark.parametrize(
    ("behaviour", "error", "traceback"),
    [
        ("failed", r"ImportError: nothing works", "Traceback: here"),
        ("dies", r"the worker of the app 'app' ended with exit code 3, before .* log: no luck today", "no luck today"),
        (
            "other-protocol",
            r".*scripted has semtask 0\.0\.9, which speaks worker protocol 99; this daemon is semtask 1\.2\.3 .*",
            "",
        ),
        ("garbage", r"the worker of the app 'app' was killed: a frame of 4294967295 bytes is announced.*", ""),
    ],
)
def test_a_start_that_fails_says_why(tmp_path: Path, behaviour: str, error: str, traceback: str) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            status = await failure(r, r.scripted(behaviour))
            assert status.error is not None
            assert re.fullmatch(error, status.error), status.error
            assert traceback in (status.traceback or "")

    asyncio.run(main())


def test_a_worker_that_says_nothing_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path, start_timeout_ms=700) as r:
            began = time.monotonic()
            r.executor.configure([r.scripted("silent")])
            await until(lambda: r.folders() != [], "a worker")
            (nonce,) = r.folders()
            await until(lambda: len(with_nonce(nonce)) == 1, "its process")
            assert not await r.executor.settled(["app"], 0.01)
            status = await failure(r, r.scripted("silent"))
            assert "it did not say hello within 0.7 s (worker_start_timeout_ms)" in (status.error or "")
            assert "still thinking" in (status.error or "")
            assert with_nonce(nonce) == []
            assert 0.6 < time.monotonic() - began < 10

    asyncio.run(main())


def test_an_interpreter_that_is_none_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            missing = await failure(r, r.write_app(python="/no/such/python"))
            why = "the program '/no/such/python' does not exist"
            assert missing.error == f"the interpreter of the app 'app' cannot be started: {why}"
            plain = tmp_path / "python"
            plain.write_text("")
            denied = await failure(r, r.write_app(name="two", python=str(plain)))
            assert "permission denied" in (denied.error or "")
            lost = App(name="three", module="jobs:app", directory=str(tmp_path / "gone"), python=sys.executable)
            nowhere = await failure(r, lost)
            assert "gone' does not exist" in (nowhere.error or "")

    asyncio.run(main())


def test_an_interpreter_without_semtask_is_told_how_to_get_it(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")

    async def main() -> None:
        async with task_rig(tmp_path / "home", env={"PATH": "/usr/bin:/bin"}) as r:
            status = await failure(r, r.write_app(python=python))
            assert status.error == (
                f"the interpreter {python} has no semtask; install it there: {python} -m pip install semtask"
            )

    asyncio.run(main())


def test_an_app_that_cannot_be_imported_is_imported_when_it_was_mended(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            app = r.write_app("import no_such_module_at_all\n")
            status = await failure(r, app)
            assert "ModuleNotFoundError: No module named 'no_such_module_at_all'" in (status.error or "")
            assert "jobs.py" in (status.traceback or "")
            assert r.executor.takers(4, ()) == []
            r.write_app()
            await until(lambda: r.status().state is AppState.READY, "another try")  # after a second
            assert r.status().error is None
            assert (await r.run("noop", n=1)).outcome.result == "1"

    asyncio.run(main())


@pytest.mark.parametrize("behaviour", ["dies", "aborts"])
def test_a_crash_loop_backs_off(tmp_path: Path, behaviour: str) -> None:
    """`aborts` says hello first."""

    async def main() -> None:
        async with task_rig(tmp_path) as r:
            r.executor.configure([r.scripted(behaviour)])
            seen: set[str] = set()
            end = time.monotonic() + 3.6
            while time.monotonic() < end:
                seen.update(r.folders())
                await asyncio.sleep(0.005)
            # At 0, 1 and 3 s, and one more where a spare was wanted before the first one was known to die.
            assert 2 <= len(seen) <= 4

    asyncio.run(main())


def test_a_reload_does_not_wait_for_the_pause(tmp_path: Path) -> None:
    async def main() -> None:
        async with task_rig(tmp_path) as r:
            await failure(r, r.write_app("raise RuntimeError('broken')\n"))
            r.write_app(SYNC)
            began = time.monotonic()
            r.executor.reload(["app"])
            assert await r.executor.settled(["app"], 20)
            assert r.status().state is AppState.READY
            assert time.monotonic() - began < 0.9

    asyncio.run(main())
