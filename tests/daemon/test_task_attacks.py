"""What users and their tasks can do to each other, and must not be able to: found by trying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.rig import Daemon, eventually, running_daemon, stop_for_certain
from tests.daemon.test_isolation import NOTHING, write_apps

MODULE = "tests.daemon.attackers"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("attacks") / "home"
    write_apps(home, f"{MODULE}:app")
    with running_daemon(home, SEMANTICA_MAX_PROCESSES="4") as running:
        yield running


def enqueue(daemon: Daemon, task: str, arguments: Mapping[str, Any] = NOTHING, **options: Any) -> str:
    answer = daemon.rpc(
        "dev.enqueue.v1",
        job_type=f"{MODULE}:{task}",
        execution_mode="IN_PROCESS",
        payload=dict(arguments),
        **options,
    )
    return str(answer["job_id"])


def result_of(daemon: Daemon, job_id: str) -> Any:
    daemon.wait(job_id)
    return daemon.job(job_id, "result")["result"]


def _has_more_than(folder: Path, count: int) -> bool:
    return len(list(folder.iterdir())) > count


def test_a_daemon_killed_again_and_again_starts_nothing_twice_that_must_not_be(tmp_path: Path) -> None:
    home, files = tmp_path / "home", tmp_path / "files"
    files.mkdir()
    write_apps(home, f"{MODULE}:app")
    daemon = Daemon(home).start()
    try:
        rules = ["fail", "requeue"] * 150
        jobs = [
            {
                "job_type": f"{MODULE}:append",
                "execution_mode": "IN_PROCESS",
                "payload": {"path": str(files / f"{number}")},
                "queue": f"q{number % 3}",
                "on_interrupt": rule,
            }
            for number, rule in enumerate(rules)
        ]
        ids = [one["job_id"] for one in daemon.rpc("dev.enqueue_many.v1", jobs=jobs)["jobs"]]
        for kill in range(6):
            eventually(partial(_has_more_than, files, 30 * kill))
            daemon.kill()
            daemon.start()
        ended = daemon.wait(*ids)
        for number, (rule, job) in enumerate(zip(rules, ended, strict=True)):
            begun = len((files / f"{number}").read_bytes()) if (files / f"{number}").exists() else 0
            if rule == "fail":
                assert (job["state"], job["end_cause"]) in {("DONE", "success"), ("FAILED", "interrupted")}
                assert begun == 1 or (begun == 0 and job["state"] == "FAILED")
            else:
                assert job["state"] == "DONE"
                assert 1 <= begun <= 1 + job["interruptions"]
    finally:
        stop_for_certain(daemon)


# --- tasks with a limit of their own ---


def test_a_limited_task_awaits_its_own_children(daemon: Daemon) -> None:
    assert result_of(daemon, enqueue(daemon, "descend", {"depth": 3}, queue="descents")) == 3


def _begin(daemon: Daemon, folder: Path, task: str, name: str, **options: Any) -> str:
    return enqueue(daemon, task, {"folder": str(folder), "name": name}, **options)


def test_the_room_of_a_job_that_is_cancelled_before_it_runs_goes_to_the_next(daemon: Daemon, tmp_path: Path) -> None:
    first, second, third = (_begin(daemon, tmp_path, "only_one", name, queue="lane") for name in "abc")
    eventually((tmp_path / "a.began").exists)
    daemon.rpc("queues.pause.v1", queue="lane")
    (tmp_path / "a.go").touch()
    daemon.wait(first)
    # Now the second one has the room, but may not begin.
    eventually(lambda: daemon.job(second)["waiting"]["reason"] == "queue_paused")
    daemon.rpc("dev.cancel.v1", job_id=second)
    daemon.rpc("queues.resume.v1", queue="lane")
    eventually((tmp_path / "c.began").exists, what="the third one has begun")
    (tmp_path / "c.go").touch()
    daemon.wait(third)


@pytest.mark.parametrize("why", ["paused", "full"])
def test_jobs_in_a_queue_without_a_slot_keep_no_room_from_others(daemon: Daemon, tmp_path: Path, why: str) -> None:
    first = _begin(daemon, tmp_path, "only_one", "first", queue="open")
    eventually((tmp_path / "first.began").exists)
    stuck = [_begin(daemon, tmp_path, "only_one", "stuck", queue=why) for _ in range(5)]
    other = _begin(daemon, tmp_path, "only_one", "other", queue="open")
    eventually(lambda: {daemon.job(job_id)["waiting"]["reason"] for job_id in (*stuck, other)} == {"task_full"})
    if why == "paused":
        daemon.rpc("queues.pause.v1", queue=why)
    else:
        daemon.rpc("queues.configure.v1", queue=why, concurrency=1)
        filler = _begin(daemon, tmp_path, "any_number", "filler", queue=why)
        eventually((tmp_path / "filler.began").exists)
    (tmp_path / "first.go").touch()
    daemon.wait(first)
    eventually((tmp_path / "other.began").exists, what="the job in the open queue has begun")
    for name in ("other", "stuck", "filler"):
        (tmp_path / f"{name}.go").touch()
    if why == "paused":
        daemon.rpc("queues.resume.v1", queue=why)
    else:
        daemon.wait(filler)
    daemon.wait(other, *stuck)
