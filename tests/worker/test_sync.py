"""Sync jobs: their order, tokens, and the end of the socket."""

from __future__ import annotations

import os
from pathlib import Path

from semtask.protocol.frames import Ended, Recalled, Run
from tests.worker.rig import Rig, until, worker

TASKS = """
@app.task
def add(a: int, b: int = 2) -> int:
    with open("began", "a") as file:
        print(a, file=file)
    return a + b

@app.task
def wait_for(path: str) -> None:
    open(path + ".began", "w").close()
    while not os.path.exists(path):
        time.sleep(0.005)
"""


def began(rig: Rig) -> list[str]:
    file = rig.cwd / "began"
    return file.read_text().split() if file.exists() else []


def test_runs_jobs_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        calls = [rig.call("add", a=n) for n in range(20)]
        rig.give(*calls)
        ends = [rig.ended(call) for call in calls]
        assert [(end.end, end.result) for end in ends] == [("done", str(n + 2)) for n in range(20)]
        assert all(end.recycle is None and not end.leftovers for end in ends)
        assert began(rig) == [str(n) for n in range(20)]
        assert rig.hang_up() == 0
        assert rig.own_log.read_text() == ""


def test_begins_no_job_without_a_token(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        first, second = rig.call("add", a=1), rig.call("add", a=2)
        rig.give(first, second, tokens=1)
        rig.ended(first)
        rig.waits_for_frames()
        assert began(rig) == ["1"]
        os.eventfd_write(rig.tokens, 1)
        rig.ended(second)


def test_jobs_are_recalled_while_one_is_stuck(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        gate = rig.path("gate")
        stuck = rig.call("wait_for", path=str(gate))
        waiting = [rig.call("add", a=n) for n in range(3)]
        rig.give(stuck, *waiting)
        until(rig.path("gate.began").exists, "the first job runs")
        assert rig.recall(*waiting[1:]) == 2
        # A later job must not be mistaken for one that was recalled, nor its token be taken for theirs.
        later = rig.call("add", a=9)
        rig.give(later)
        gate.touch()
        assert rig.ended(later).end == "done"
        assert began(rig) == ["0", "9"]


def test_a_recall_that_is_still_to_be_read_counts(tmp_path: Path) -> None:
    """The worker has the recalled job before it, and finds the token of a later one."""
    with worker(tmp_path, TASKS) as rig:
        recalled, later = rig.call("add", a=1), rig.call("add", a=2)
        rig.give(recalled, tokens=0)
        rig.waits_for_frames()
        os.kill(rig.pid, 19)
        rig.send(Recalled(jobs=[(recalled.job_id, 1)]))
        os.eventfd_write(rig.tokens, 1)
        os.kill(rig.pid, 18)
        rig.waits_for_frames()
        rig.send(Run(calls=[later]))
        assert rig.ended(later).end == "done"
        assert began(rig) == ["2"]


def test_begins_nothing_after_the_end_of_the_socket(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        gate = rig.path("gate")
        rig.give(rig.call("wait_for", path=str(gate)), *(rig.call("add", a=n) for n in range(5)))
        until(rig.path("gate.began").exists, "the first job runs")
        rig.daemon.close()
        gate.touch()
        assert rig.process.wait(10) == 0
        assert began(rig) == []


def test_marks_the_call_that_runs(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        rig.run("add", a=1)
        gate = rig.path("gate")
        call = rig.call("wait_for", path=str(gate))
        rig.give(call)
        until(rig.path("gate.began").exists, "it runs")
        assert rig.marked() == 2
        gate.touch()
        rig.ended(call)
        assert rig.marked() == 0


def test_refuses_what_its_app_does_not_offer(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        for name in ("jobs:gone", "x" * 100_000 + ":y"):
            end = rig.run(name)
            assert end.end == "permanent"
            assert end.exception is not None
            assert "app jobs:app offers no task '" + name[:20] in end.exception.message
            assert len(end.exception.message) < 400
        assert rig.run("add", a=1).result == "3"


def test_arguments_that_do_not_fit_end_no_worker(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        for arguments in ({}, {"a": "x"}, {"a": 1, "c": 2}):
            end: Ended = rig.run("add", **arguments)
            assert end.end == "bad_payload"
            assert end.exception is not None
            assert "jobs:add" in end.exception.message
        assert began(rig) == []
        assert rig.run("add", a=1).result == "3"


def test_an_async_task_that_comes_to_a_sync_worker_is_refused(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS + "\n@app.task\nasync def fetch() -> None: ...\n") as rig:
        rig.run("add", a=1)
        end = rig.run("fetch")
        assert end.end == "failed"
        assert end.exception is not None
        assert "runs sync tasks only" in end.exception.message
