"""A Stop with its signal ends the code of a sync task, and nothing else."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import pytest

from semtask.protocol.frames import Call, Run, Stop
from semtask.tasks.control import Interrupted
from semtask.worker.soft_stop import SoftStop
from tests.worker.rig import Rig, until, worker

TASKS = """
def begun():
    open("begun", "w").close()

@app.task
def ok() -> int:
    return 1

@app.task
def loop() -> None:
    begun()
    while True:
        pass

@app.task
def sleep() -> None:
    begun()
    time.sleep(60)

@app.task
def in_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    begun()
    lock.acquire()

@app.task
def event_loop() -> None:
    async def forever():
        begun()
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            group.create_task(asyncio.sleep(60))
    asyncio.run(forever())

def in_loop(run, how):
    '''A loop in each of the places in which a signal can find it.'''
    async def spin():
        begun()
        while True:
            pass

    async def main():
        loop = asyncio.get_running_loop()
        try:
            if how == "waits":
                loop.call_later(0.01, begun)
            elif how == "callback":
                loop.call_soon(lambda: spin().send(None))
            elif how == "step":
                await spin()
            else:
                child = asyncio.create_task(spin())
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            print("cleaned up")

    run(main())

@app.task
def asyncio_loop(how: str) -> None:
    in_loop(asyncio.run, how)

@app.task
def runner_loop(how: str) -> None:
    with asyncio.Runner() as runner:
        in_loop(runner.run, how)

@app.task
def uvloop_loop(how: str) -> None:
    import uvloop
    in_loop(uvloop.run, how)

@app.task
def printing() -> None:
    begun()
    while True:
        print("a line of text")

@app.task
def logging_() -> None:
    begun()
    while True:
        current_job().log.info("a line of text")

@app.task
def progressing() -> None:
    begun()
    job = current_job()
    job._monotonic = iter(range(10**9)).__next__  # each one is sent
    while True:
        job.progress(1, 2, "x" * 900)

@app.task
def blocking() -> None:
    begun()
    while True:
        with current_job().blocked([str(n) * 10 for n in range(20_000)]):
            pass

@app.task
def swallows() -> str:
    try:
        begun()
        time.sleep(60)
    except BaseException:
        time.sleep(0.05)
    return "swallowed"

@app.task
def cleans_up() -> None:
    try:
        begun()
        time.sleep(60)
    finally:
        time.sleep(0.2)
        print("cleaned up")

@app.task
def fails_instead() -> None:
    try:
        begun()
        time.sleep(60)
    except BaseException:
        raise ValueError("instead")

@app.task
def checks() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    begun()
    try:
        while True:
            current_job().check_cancelled()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])

@app.task
def thread_checks() -> str:
    def work():
        try:
            while True:
                current_job().check_cancelled()
                time.sleep(0.001)
        except Interrupted as error:
            seen.append(error.reason)
            done.set()
    seen = []
    done = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        begun()
        time.sleep(60)
    except Interrupted:
        done.wait()
        thread.join()
    return seen[0]

@app.task
def short() -> None:
    sum(range(2000))
"""


def begin(rig: Rig, task: str) -> Call:
    call = rig.call(task)
    rig.give(call)
    until((rig.cwd / "begun").exists, f"{task} runs")
    return call


@pytest.mark.parametrize(
    "task",
    ["loop", "sleep", "in_a_lock", "event_loop", "printing", "logging_", "progressing", "cleans_up", "checks"],
)
def test_ends_the_task_where_it_is(tmp_path: Path, task: str) -> None:
    with worker(tmp_path, TASKS) as rig:
        call = begin(rig, task)
        if task in {"printing", "logging_"}:
            until(lambda: len(rig.log(call)) > 10, "it writes")
        rig.stop(call, "timeout")
        ended = rig.ended(call)
        assert ended.end == "stopped"
        assert ended.recycle is None
        log = "\n".join(rig.log(call))
        assert "WARNING the job is being stopped (timeout); its code is here:" in log
        assert f"in {task}" in log
        assert "semtask/worker" not in log
        assert "runpy" not in log
        if task == "cleans_up":
            assert "OUT cleaned up" in log
        if task == "printing":
            assert {line for line in rig.log(call) if line.startswith("OUT")} == {"OUT a line of text"}
        assert rig.run("ok").result == "1"


@pytest.mark.parametrize("loop", ["asyncio_loop", "runner_loop", "uvloop_loop"])
def test_no_event_loop_swallows_it(tmp_path: Path, loop: str) -> None:
    if loop == "uvloop_loop":
        pytest.importorskip("uvloop", reason="uvloop is not installed: pip install uvloop")
    with worker(tmp_path, TASKS) as rig:
        for how in ("waits", "step", "child", "callback"):
            (rig.cwd / "begun").unlink(missing_ok=True)
            call = rig.call(loop, how=how)
            rig.give(call)
            until((rig.cwd / "begun").exists, f"{loop} runs")
            rig.stop(call, "timeout")
            ended = rig.ended(call)
            assert (ended.end, ended.recycle) == ("stopped", None), how
            assert ended.exception is not None
            assert ended.exception.type == "Interrupted"
            assert "OUT cleaned up" in rig.log(call), how
        assert rig.run("ok").result == "1"


def test_a_task_that_swallows_it_ends_as_it_wants(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        call = begin(rig, "swallows")
        rig.stop(call)
        ended = rig.ended(call)
        assert (ended.end, ended.result) == ("done", '"swallowed"')


def test_a_task_that_fails_instead_has_failed(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        call = begin(rig, "fails_instead")
        rig.stop(call)
        ended = rig.ended(call)
        assert ended.end == "failed"
        assert ended.exception is not None
        assert ended.exception.message == "instead"


def test_cleaning_up_is_not_interrupted_by_a_second_stop(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        call = begin(rig, "cleans_up")
        rig.stop(call, "timeout")
        until(lambda: any("being stopped" in line for line in rig.log(call)), "it is being stopped")
        rig.stop(call, "cancel")
        assert rig.ended(call).end == "stopped"
        assert rig.log(call)[-1] == "OUT cleaned up"


def test_threads_of_the_job_see_it_too(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        call = begin(rig, "thread_checks")
        rig.stop(call, "cancel")
        assert rig.ended(call).result == '"cancel"'


def test_a_job_that_has_not_begun_ends_without_running(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        first = begin(rig, "swallows")
        (rig.cwd / "begun").unlink()
        second, third = rig.call("loop"), rig.call("ok")
        rig.give(second, third)
        rig.stop(second)
        rig.stop(first)
        assert rig.ended(first).end == "done"
        ended = rig.ended(second)
        assert (ended.end, ended.ran_us) == ("stopped", 0)
        assert rig.ended(third).end == "done"
        assert not (rig.cwd / "begun").exists()


def test_a_stop_for_a_job_that_has_ended_hurts_nobody(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        over = rig.call("ok")
        rig.give(over)
        rig.ended(over)
        rig.stop(over)
        call = begin(rig, "sleep")
        rig.stop(over)
        time.sleep(0.05)
        rig.stop(call)
        assert rig.ended(call).end == "stopped"
        assert rig.run("ok").result == "1"


def test_signals_at_any_moment_end_no_worker(tmp_path: Path) -> None:
    """Hundreds of short jobs, each told to stop at a moment of its own: an end for each, whatever it is."""
    with worker(tmp_path, TASKS) as rig:
        rig.run("ok")
        stopped = 0
        for round_ in range(300):
            call = rig.call("short")
            os.eventfd_write(rig.tokens, 1)
            rig.send(Run(calls=[call]))
            moment = time.perf_counter_ns() + round_ % 60 * 3000
            while time.perf_counter_ns() < moment:
                pass
            rig.send(Stop(job_id=call.job_id, claim_no=1, reason="cancel", grace_ms=1))
            os.kill(rig.pid, signal.SIGUSR1)
            ended = rig.ended(call)
            assert ended.end in {"done", "stopped"}
            stopped += ended.end == "stopped"
        assert rig.run("ok").result == "1"
        assert stopped, "not one of the signals came in time"
        assert "Traceback" not in rig.own_log.read_text()


def test_a_frame_is_never_torn_by_it(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        call = begin(rig, "blocking")
        until(lambda: select.select([rig.daemon], [], [], 0)[0], "it sends")
        rig.waits_for_frames()  # in the middle of a frame that the socket cannot take
        rig.stop(call)
        assert rig.ended(call).end == "stopped"  # else the frames would be out of step
        assert rig.run("ok").result == "1"


def test_a_signal_between_reading_and_beginning_counts() -> None:
    delivered: list[object] = []

    def deliver(frame: object) -> BaseException:
        delivered.append(frame)
        return Interrupted("cancel")

    before = signal.getsignal(signal.SIGUSR1)
    stop = SoftStop(deliver)
    try:
        signal.raise_signal(signal.SIGUSR1)
        stop.forget()
        stop.arm()  # that one was about what has been read
        stop.disarm()
        signal.raise_signal(signal.SIGUSR1)
        assert delivered == []
        with pytest.raises(Interrupted):
            stop.arm()
        signal.raise_signal(signal.SIGUSR1)  # once a job
        assert len(delivered) == 1
    finally:
        signal.signal(signal.SIGUSR1, before)
