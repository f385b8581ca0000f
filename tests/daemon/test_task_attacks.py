"""What users and their tasks can do to each other, and must not be able to: found by trying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.rig import Daemon, eventually, running_daemon
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
