"""What an async job leaves on the event loop ends with it, while others run beside it in the same process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.rig import Daemon, alive, eventually, running_daemon
from tests.daemon.test_isolation import write_apps

MODULE = "tests.daemon.async_leavers"
SOME_TICKS_S = 0.08

# What the log of the job says. Nothing: it is not left, as it never was to go on.
LEFT = {
    "a_task": "task tick (my ticker)",
    "a_task_of_a_task": "task tick",
    "a_gathered_task": "task tick",
    "a_shielded_task": "task tick",
    "a_task_in_another_context": "task tick",
    "a_task_past_the_loop": "task tick",
    "an_eager_task": "task tick",
    "a_task_of_a_callback": "task tick",
    "a_task_of_a_later_callback": "task tick",
    "a_task_of_a_thread": "task tick",
    "call_later": "",
    "call_at": "",
    "call_soon": "",
    "a_reader": "reader of descriptor",
    "a_writer": "writer of descriptor",
    "a_task_of_a_connection": "",  # which stays, and gets data after the end
    "a_server": "server",
    "a_process": "process ",
    "work_in_a_thread": "work in a thread",
    "work_that_waits_for_a_thread": "work in a thread",
    "a_thread": "thread Thread-",
    "a_generator": "",
    "one_that_cleans_up": "task one_that_cleans_up.<locals>.clean",
}
CLEANED = {"a_generator", "one_that_cleans_up"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("leftovers") / "home"
    write_apps(home, f"{MODULE}:app")
    with running_daemon(home, SEMANTICA_MAX_PROCESSES="4") as running:
        running.rpc("queues.configure.v1", queue="async", concurrency=100)
        yield running


def enqueue(daemon: Daemon, task: str, /, *, options: dict[str, Any] | None = None, **arguments: Any) -> str:
    answer = daemon.rpc(
        "dev.enqueue.v1",
        job_type=f"{MODULE}:{task}",
        execution_mode="IN_PROCESS",
        queue="async",
        payload=arguments,
        **(options or {}),
    )
    return str(answer["job_id"])


def result_of(daemon: Daemon, job_id: str) -> Any:
    [job] = daemon.wait(job_id)
    assert (job["state"], job["attempts"]) == ("DONE", 1), job
    return daemon.job(job_id, "result")["result"]


def run(daemon: Daemon, task: str, /, **arguments: Any) -> Any:
    return result_of(daemon, enqueue(daemon, task, **arguments))


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.fixture
def beside(daemon: Daemon, tmp_path: Path) -> Iterator[str]:
    """A job that runs all the time, so that its worker is never without one."""
    go = tmp_path / "go"
    job_id = enqueue(daemon, "beside", go=str(go))
    eventually(lambda: daemon.job(job_id)["state"] == "RUNNING")
    yield job_id
    go.touch()
    daemon.wait(job_id)


def test_what_a_job_leaves_has_ended_with_it(daemon: Daemon, beside: str, tmp_path: Path) -> None:
    pid = run(daemon, "where")
    wrong: list[object] = []
    for kind, said in LEFT.items():
        path = tmp_path / kind
        job_id = enqueue(daemon, "leave", kind=kind, path=str(path))
        assert result_of(daemon, job_id) == pid, f"another worker after {kind}"
        at_end = size(path)
        assert run(daemon, "where", wait_s=SOME_TICKS_S) == pid, f"another worker after {kind}"
        log = daemon.log(job_id)
        if size(path) != at_end:
            wrong.append(f"{kind} goes on")
        if said not in log or ("which are ended now" in log) != bool(said):
            wrong.append((kind, log))
        if kind in CLEANED and not path.read_text().endswith("cleaned"):
            wrong.append((kind, path.read_text()))
    assert wrong == [], "\n".join(map(str, wrong))
    assert daemon.job(beside)["state"] == "RUNNING"


@pytest.mark.parametrize("kind", ["one_that_swallows", "one_that_refuses", "a_long_thread"])
def test_what_cannot_be_ended_costs_the_worker_its_place(
    daemon: Daemon, beside: str, tmp_path: Path, kind: str
) -> None:
    """Also with jobs all the time. The others in it go on to their end."""
    pid = run(daemon, "where")
    path = tmp_path / kind
    job_id = enqueue(daemon, "leave", kind=kind, path=str(path))
    assert result_of(daemon, job_id) == pid
    assert "a job left what could not be ended: t" in daemon.log(job_id)
    assert run(daemon, "where") != pid
    if kind != "a_long_thread":
        at_end = size(path)
        run(daemon, "where", wait_s=SOME_TICKS_S)
        assert size(path) == at_end
    assert daemon.job(beside)["state"] == "RUNNING"
    (tmp_path / "go").touch()
    assert result_of(daemon, beside) == pid
    eventually(lambda: not alive(pid), what="the worker has gone when it had no job left")


@pytest.mark.parametrize("stop", ["cancel", "timeout"])
def test_what_a_stopped_job_leaves_has_ended_with_it(daemon: Daemon, beside: str, tmp_path: Path, stop: str) -> None:
    path = tmp_path / stop
    options = {"timeout_ms": 300, "max_attempts": 1} if stop == "timeout" else {}
    job_id = enqueue(daemon, "leave_and_hang", options=options, path=str(path))
    eventually(path.exists)
    if stop == "cancel":
        daemon.rpc("dev.cancel.v1", job_id=job_id)
    [job] = daemon.wait(job_id)
    assert job["end_cause"] == ("cancelled" if stop == "cancel" else "timeout")
    at_end = size(path)
    run(daemon, "where", wait_s=SOME_TICKS_S)
    assert size(path) == at_end
    assert "task tick" in daemon.log(job_id)
    assert daemon.job(beside)["state"] == "RUNNING"


def test_what_is_made_for_the_app_outlives_the_job(daemon: Daemon, beside: str, tmp_path: Path) -> None:
    path = tmp_path / "app"
    job_id = enqueue(daemon, "leave", kind="of_the_app", path=str(path))
    pid = result_of(daemon, job_id)
    at_end = size(path)
    assert run(daemon, "where", wait_s=SOME_TICKS_S) == pid
    assert size(path) > at_end
    assert daemon.log(job_id) == ""


def test_a_changed_process_is_replaced_also_if_it_always_has_a_job(daemon: Daemon, beside: str, tmp_path: Path) -> None:
    pid = run(daemon, "change")
    others: list[str] = []

    def is_replaced() -> bool:
        others.append(enqueue(daemon, "where"))
        return bool(result_of(daemon, others[-1]) != pid)

    eventually(is_replaced)
    assert any("a job changed whether garbage is collected" in daemon.log(job_id) for job_id in others)
    assert daemon.job(beside)["state"] == "RUNNING"
    (tmp_path / "go").touch()
    assert result_of(daemon, beside) == pid
