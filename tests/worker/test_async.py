"""Async jobs: side by side, each ended on its own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from semtask.protocol.frames import Stop
from tests.worker.rig import alive, until, worker

TASKS = """
import contextvars

@app.task
async def ok() -> int:
    return 1

@app.task
async def echo(text: str, wait_s: float = 0.0) -> str:
    await asyncio.sleep(wait_s)
    return text

@app.task
async def anything(code: str):
    scope = dict(globals())
    exec("async def main():\\n" + "\\n".join("    " + line for line in code.split("\\n")), scope)
    return await scope["main"]()

@app.task
async def swallows() -> str:
    print("sleeps")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("swallows")
        await asyncio.sleep(0.3)
    return "swallowed"

async def inner():
    print("inner")
    await asyncio.sleep(60)

@app.task
async def outer() -> None:
    await inner()

@app.task
async def child_task() -> None:
    async def child():
        open("begun", "w").close()
        time.sleep(0.3)
        open("slept", "w").close()
    await asyncio.create_task(child())

@app.task
async def forever() -> None:
    await asyncio.Event().wait()

@app.task
def sync() -> None: ...
"""


def test_a_thousand_jobs_sleep_at_once(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        calls = [rig.call("echo", text=str(n), wait_s=0.5) for n in range(1000)]
        began = time.monotonic()
        rig.give(*calls, tokens=0)
        assert [rig.ended(call).result for call in calls] == [f'"{n}"' for n in range(1000)]
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("code", "end", "kind"),
    [
        ("raise ValueError(1)", "failed", "ValueError"),
        ("raise SystemExit(1)", "failed", "SystemExit"),
        ("sys.exit()", "failed", "SystemExit"),
        ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
        ("raise asyncio.CancelledError", "failed", "asyncio.exceptions.CancelledError"),
        ("raise GeneratorExit", "failed", "GeneratorExit"),
        ("await asyncio.create_task(anything('sys.exit(5)'))", "failed", "SystemExit"),
        ("await asyncio.gather(anything('sys.exit(5)'), ok())", "failed", "SystemExit"),
        ("async with asyncio.TaskGroup() as g: g.create_task(anything('raise KeyError'))", "failed", "ExceptionGroup"),
        ("raise Permanent('no')", "permanent", "Permanent"),
        ("raise Snooze(3)", "snooze", "Snooze"),
        ("return object()", "permanent", "EncodeError"),
    ],
)
def test_whatever_is_raised_ends_its_job_alone(tmp_path: Path, code: str, end: str, kind: str) -> None:
    with worker(tmp_path, TASKS) as rig:
        beside = rig.call("echo", text="beside", wait_s=0.2)
        rig.give(beside)
        ended = rig.run("anything", code=code)
        assert ended.exception is not None
        assert (ended.end, ended.exception.type) == (end, kind)
        assert "semtask" not in ended.exception.traceback.replace("semtask.tasks.control", "")
        assert rig.ended(beside).result == '"beside"'
        assert rig.run("ok").result == "1"


def test_an_exit_in_a_callback_leaves_the_loop_alive(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        beside = rig.call("echo", text="beside", wait_s=0.2)
        rig.give(beside)
        code = "asyncio.get_running_loop().call_soon(sys.exit, 7)\nawait asyncio.sleep(0.05)\nreturn 2"
        assert rig.run("anything", code=code).result == "2"
        assert rig.ended(beside).result == '"beside"'
        assert "SystemExit: 7" in rig.own_log.read_text()


def test_a_job_that_stops_the_loop_stops_no_other(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        beside = rig.call("echo", text="beside", wait_s=0.2)
        rig.give(beside)
        code = "asyncio.get_running_loop().stop()\nawait asyncio.sleep(0.05)\nreturn 2"
        assert rig.run("anything", code=code).result == "2"
        assert rig.ended(beside).result == '"beside"'
        assert rig.hang_up() == 0


def test_bad_arguments_and_unknown_and_sync_tasks_end_their_job_alone(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        rig.run("ok")
        assert rig.run("echo", text=1).end == "bad_payload"
        assert rig.run("gone").end == "permanent"
        assert rig.run("sync").end == "failed"
        assert rig.run("ok").result == "1"


def test_a_stop_cancels_one_job(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        stopped, beside = rig.call("outer"), rig.call("echo", text="beside", wait_s=0.3)
        rig.give(stopped, beside)
        until(lambda: rig.log(stopped) == ["OUT inner"] and rig.marked() == 0, "both wait")
        rig.send(Stop(job_id=stopped.job_id, claim_no=1, reason="cancel", grace_ms=1000))
        assert rig.ended(stopped).end == "stopped"
        log = "\n".join(rig.log(stopped))
        assert "WARNING the job is being stopped (cancel); its code is here:" in log
        assert log.index("in outer") < log.index("in inner") < log.index("in sleep")
        assert "semtask" not in log
        assert rig.ended(beside).result == '"beside"'


def test_a_stop_before_its_first_step_ends_it(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        rig.run("ok")
        call = rig.call("forever")
        os.kill(rig.pid, signal.SIGSTOP)
        rig.give(call)
        rig.send(Stop(job_id=call.job_id, claim_no=1, reason="cancel", grace_ms=1000))
        os.kill(rig.pid, signal.SIGCONT)
        assert rig.ended(call).end == "stopped"


def test_a_coroutine_that_swallows_it_ends_as_it_wants(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        call = rig.call("swallows")
        rig.give(call)
        until(lambda: rig.log(call) and rig.marked() == 0, "it sleeps")
        rig.stop(call)
        until(lambda: rig.log(call)[-1] == "OUT swallows", "it was cancelled")
        rig.stop(call)  # neither a second one nor the signal changes anything
        assert rig.ended(call).result == '"swallowed"'


def test_marks_whose_code_runs_also_in_the_tasks_that_a_job_makes(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        sleeping, busy = rig.call("forever"), rig.call("child_task")
        rig.give(sleeping, busy)
        until((rig.cwd / "begun").exists, "the child runs")
        assert rig.marked() == 2
        assert not (rig.cwd / "slept").exists()
        rig.ended(busy)
        assert rig.marked() == 0


def test_a_crash_leaves_the_mark_of_its_job(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        rig.give(rig.call("forever"), rig.call("forever"), rig.call("anything", code="os.abort()"), rig.call("forever"))
        assert rig.rest() == []
        assert rig.process.wait(10) == -signal.SIGABRT
        assert rig.marked() == 3


def test_leaves_at_once_at_the_end_of_the_socket(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        rig.run("ok")
        rig.give(*(rig.call("forever") for _ in range(3)))
        assert rig.hang_up() == 0


def test_a_forked_child_that_comes_back_into_the_loop_ends(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        code = "pid = os.fork()\nif pid == 0: return 'child'\nos.waitpid(pid, 0)\nreturn 'parent'"
        call, after = rig.call("anything", code=code), rig.call("ok")
        rig.give(call)
        assert rig.ended(call).result == '"parent"'
        rig.give(after)
        assert rig.ended(after).result == "1"
        rig.daemon.shutdown(1)
        assert rig.rest() == []


def test_what_is_left_is_looked_at_when_the_last_job_has_ended(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS, shim=True) as rig:
        leaver = rig.call("anything", code="return subprocess.Popen(['sleep', '60']).pid")
        beside = rig.call("echo", text="", wait_s=0.3)
        rig.give(beside, leaver)
        left = rig.ended(leaver)
        assert not left.leftovers
        last = rig.ended(beside)
        assert last.leftovers
        rig.give(rig.call("ok"))
        rig.waits_for_frames()
        pid = int(left.result or "")
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)
        rig.daemon.shutdown(1)
        assert rig.rest() == []


def test_code_that_outlives_its_job_in_a_pool_of_threads_recycles_the_worker(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        assert rig.run("anything", code="await asyncio.to_thread(time.sleep, 0)").recycle is None
        begun = "begun = asyncio.Event(); loop = asyncio.get_running_loop()\n"
        work = "lambda: (loop.call_soon_threadsafe(begun.set), time.sleep(5))"
        code = f"{begun}loop.run_in_executor(None, {work}); await begun.wait()"  # what has not begun is cancelled
        assert rig.run("anything", code=code).recycle == "a job left what could not be ended: work in a thread"
