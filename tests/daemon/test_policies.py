"""Retries, limits of time and subjects, through the socket of a real daemon."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.rig import Daemon, RpcFailed, alive, command_params, eventually, running_daemon


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- retries ---


def test_a_flaky_job_is_retried_until_it_succeeds(daemon: Daemon, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    script = f"echo x >> {tries}; test $(wc -l < {tries}) -ge 3"
    job_id = daemon.command("sh", "-c", script, max_attempts=5, retry_base_delay_ms=100, backoff_factor=2)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["attempts"], job["failures"], job["claim_no"]) == ("DONE", 3, 2, 3)
    attempts = daemon.job(job_id, "attempts")["attempts_list"]
    assert [a["end_cause"] for a in attempts] == ["exit_code", "exit_code", "success"]
    gaps = [b["started_at"] - a["finished_at"] for a, b in itertools.pairwise(attempts)]
    for gap, wanted in zip(gaps, (100, 200), strict=True):
        assert 0.9 * wanted <= gap <= 1.1 * wanted + 150  # the delay, and a loaded machine
    assert daemon.stats()["counters"]["worker.retry_count"] == 2


def test_the_budget_ends_and_the_last_failure_stays(daemon: Daemon) -> None:
    job_id = daemon.command("sh", "-c", "exit 3", max_attempts=3, retry_base_delay_ms=10)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["end_cause"], job["exit_code"], job["failures"]) == ("FAILED", "exit_code", 3, 3)


@pytest.mark.parametrize("max_attempts", [0, 1])
def test_no_retry_by_default_and_with_zero(daemon: Daemon, max_attempts: int) -> None:
    [job] = daemon.wait(daemon.command("false", max_attempts=max_attempts))
    assert (job["state"], job["attempts"]) == ("FAILED", 1)


def test_what_cannot_ever_start_is_not_retried(daemon: Daemon) -> None:
    [job] = daemon.wait(daemon.command("no-such-program-at-all", max_attempts=5))
    assert (job["state"], job["end_cause"], job["claim_no"]) == ("FAILED", "spawn_failed", 1)


def test_a_waiting_retry_says_so_survives_a_restart_and_can_be_cancelled(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("sh", "-c", "exit 9", max_attempts=5, retry_base_delay_ms=60_000)
        job = eventually(lambda: (j := daemon.job(job_id))["state"] == "SCHEDULED" and j)
        assert job["waiting"]["reason"] == "retry"
        assert "attempt 2 of 5" in job["waiting"]["text"]
        assert "exit code 9" in job["waiting"]["text"]
        daemon.kill()
        daemon.start()
        again = daemon.job(job_id)
        assert (again["state"], again["run_at"], again["failures"]) == ("SCHEDULED", job["run_at"], 1)
        daemon.rpc("dev.cancel.v1", job_id=job_id)
        assert daemon.job(job_id)["state"] == "CANCELLED"


def test_a_lost_shim_is_retried_only_where_asked_and_three_times(daemon: Daemon, tmp_path: Path) -> None:
    """The command kills its own shim each time."""
    plain = daemon.command("sh", "-c", "kill -9 $PPID; sleep 60")
    asked = daemon.command("sh", "-c", "kill -9 $PPID; sleep 60", retry_on_crash=True, retry_base_delay_ms=10)
    first, second = daemon.wait(plain, asked)
    assert (first["state"], first["end_cause"], first["crashes"]) == ("FAILED", "worker_crash", 1)
    assert (second["state"], second["end_cause"], second["crashes"]) == ("FAILED", "quarantined", 3)


# --- limits of time ---


def test_a_timeout_ends_the_tree_and_keeps_the_output(daemon: Daemon, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"echo before; setsid sleep 1000 & echo $! > {pids}; sleep 1000"
    job_id = daemon.command("sh", "-c", script, timeout_ms=300)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["end_cause"], job["stop_reason"]) == ("FAILED", "timeout", "timeout")
    assert 300 <= job["finished_at"] - job["started_at"] < 2500
    assert daemon.log(job_id) == "before\n"
    assert not alive(int(pids.read_text()))


def test_a_timeout_counts_for_each_attempt_and_is_retried(daemon: Daemon) -> None:
    job_id = daemon.command("sleep", "60", timeout_ms=200, max_attempts=2, retry_base_delay_ms=10)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["end_cause"], job["attempts"]) == ("FAILED", "timeout", 2)


def test_a_deadline_stops_what_runs_and_is_not_retried(daemon: Daemon) -> None:
    job_id = daemon.command("sleep", "60", deadline=now_ms() + 500, max_attempts=5)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["end_cause"], job["stop_reason"]) == ("FAILED", "deadline", "deadline")
    assert job["finished_at"] - job["deadline"] < 1500


@pytest.mark.parametrize("paused", [False, True])
def test_ttl_and_deadline_end_what_waits_within_a_second(daemon: Daemon, paused: bool) -> None:
    if paused:
        daemon.rpc("queues.pause.v1", queue="q")
    else:
        daemon.rpc("queues.configure.v1", queue="q", concurrency=1)
        daemon.command("sleep", "60", queue="q")
        eventually(lambda: daemon.stats()["running_jobs"] == 1)
    begin = now_ms()
    stale = daemon.command("true", queue="q", ttl_ms=400)
    late = daemon.command("true", queue="q", deadline=begin + 600)
    scheduled = daemon.command("true", queue="q", ttl_ms=300, schedule={"type": "AFTER", "delay_ms": 500})
    one, two, three = daemon.wait(stale, late, scheduled)
    assert (one["state"], one["end_cause"]) == ("SKIPPED_TTL", "ttl")
    assert (two["state"], two["end_cause"]) == ("SKIPPED_DEADLINE", "deadline")
    assert (three["state"], three["end_cause"]) == ("SKIPPED_TTL", "ttl")
    assert 400 <= one["finished_at"] - one["created_at"] < 1500
    assert 600 <= two["finished_at"] - begin < 1700
    assert 800 <= three["finished_at"] - three["created_at"] < 1900  # the ttl runs from run_at


def test_ttl_is_over_when_it_was_claimed(daemon: Daemon) -> None:
    job_id = daemon.command("sleep", "1", ttl_ms=300)
    [job] = daemon.wait(job_id)
    assert job["state"] == "DONE"


def test_deadlines_pass_while_no_daemon_runs(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        daemon.rpc("queues.pause.v1", queue="q")
        job_id = daemon.command("true", queue="q", deadline=now_ms() + 300)
        stale = daemon.command("true", queue="q", ttl_ms=300)
        daemon.kill()
        killed = now_ms()
        eventually(lambda: now_ms() > killed + 400)
        daemon.start()
        one, two = daemon.wait(job_id, stale)
        assert (one["state"], two["state"]) == ("SKIPPED_DEADLINE", "SKIPPED_TTL")


def test_a_job_that_ends_by_itself_in_its_grace_is_told_by_its_stop_reason(daemon: Daemon, tmp_path: Path) -> None:
    script = "trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done"
    job_id = daemon.command("sh", "-c", script, timeout_ms=300)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["end_cause"], job["exit_code"]) == ("FAILED", "timeout", 0)
    assert daemon.log(job_id).endswith("bye\n")


def test_a_cancel_goes_before_a_timeout(daemon: Daemon, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'touch {ready}' TERM; while :; do sleep 0.05; done"
    job_id = daemon.command("sh", "-c", script, timeout_ms=200, grace_ms=60_000, max_attempts=3)
    eventually(ready.exists)
    assert daemon.job(job_id)["stop_reason"] == "timeout"
    daemon.rpc("dev.cancel.v1", job_id=job_id, grace_ms=0)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["stop_reason"]) == ("CANCELLED", "cancel")


# --- subjects ---


@pytest.mark.parametrize("first_fails", [False, True])
def test_of_a_thousand_enqueues_of_a_subject_the_first_and_the_last_run(
    daemon: Daemon, tmp_path: Path, first_fails: bool
) -> None:
    gate, history = tmp_path / "gate", tmp_path / "history"
    script = f'echo "start $1" >> {history}; while [ ! -e {gate} ]; do sleep 0.02; done; echo "end $1" >> {history}'
    fails = f"{script}; exit 1" if first_fails else script
    ids = [daemon.command("sh", "-c", fails, "sh", "0", subject_key="s", max_attempts=5, retry_base_delay_ms=1)]
    eventually(lambda: daemon.job(ids[0])["state"] == "RUNNING")
    batch = [command_params("sh", "-c", script, "sh", str(n), subject_key="s") for n in range(1, 1001)]
    ids += [j["job_id"] for j in daemon.rpc("dev.enqueue_many.v1", jobs=batch)["jobs"]]
    gate.touch()
    first, last = daemon.wait(ids[0], ids[-1])
    assert (first["state"], last["state"]) == ("SUPERSEDED" if first_fails else "DONE", "DONE")
    assert history.read_text().splitlines() == ["start 0", "end 0", "start 1000", "end 1000"]
    queue = daemon.rpc("queues.list.v1")["queues"][0]
    assert (queue["done"], queue["superseded"]) == ((1, 1000) if first_fails else (2, 999))
    middle = daemon.job(ids[500])
    assert (middle["state"], middle["end_cause"], middle["superseded_by"]) == ("SUPERSEDED", "superseded", ids[501])
    assert (first["generation"], last["generation"]) == (1, 1001)


def test_a_superseded_job_is_not_retried(daemon: Daemon, tmp_path: Path) -> None:
    gate, history = tmp_path / "gate", tmp_path / "history"
    script = f"echo old >> {history}; while [ ! -e {gate} ]; do sleep 0.02; done; exit 1"
    old = daemon.command("sh", "-c", script, subject_key="s", max_attempts=5, retry_base_delay_ms=10)
    eventually(history.exists)
    new = daemon.command("sh", "-c", f"echo new >> {history}", subject_key="s")
    [listed] = daemon.rpc("dev.query_jobs.v1", filter={"state": ["QUEUED"]})["items"]
    assert listed["waiting"]["reason"] == daemon.job(new)["waiting"]["reason"] == "subject_busy"
    assert old in listed["waiting"]["text"]
    gate.touch()
    first, second = daemon.wait(old, new)
    assert (first["state"], first["end_cause"], first["attempts"]) == ("SUPERSEDED", "superseded", 1)
    assert second["state"] == "DONE"
    assert history.read_text().split() == ["old", "new"]


def test_a_waiting_retry_is_superseded(daemon: Daemon) -> None:
    old = daemon.command("false", subject_key="s", max_attempts=5, retry_base_delay_ms=60_000)
    eventually(lambda: daemon.job(old)["state"] == "SCHEDULED")
    answer = daemon.rpc("dev.enqueue.v1", **command_params("true", subject_key="s"))
    assert answer["superseded"] == 1
    assert daemon.job(old)["state"] == "SUPERSEDED"
    daemon.wait(answer["job_id"])


def test_supersede_running_stops_the_one_that_runs(daemon: Daemon, tmp_path: Path) -> None:
    old = daemon.command("sleep", "60", subject_key="s")
    eventually(lambda: daemon.job(old)["state"] == "RUNNING")
    new = daemon.command("true", subject_key="s", on_duplicate="supersede_running")
    first, second = daemon.wait(old, new)
    assert (first["state"], first["stop_reason"], first["superseded_by"]) == ("SUPERSEDED", "superseded", new)
    assert second["state"] == "DONE"
    assert second["started_at"] >= first["finished_at"]


def test_join_reject_and_after(daemon: Daemon, tmp_path: Path) -> None:
    gate, history = tmp_path / "gate", tmp_path / "history"
    script = f'while [ ! -e {gate} ]; do sleep 0.02; done; echo "$1" >> {history}'

    def params(name: str, mode: str) -> dict[str, Any]:
        return command_params("sh", "-c", script, "sh", name, subject_key="s", on_duplicate=mode)

    first = daemon.rpc("dev.enqueue.v1", **params("first", "join"))
    joined = daemon.rpc("dev.enqueue.v1", **params("joined", "join"))
    assert (joined["job_id"], joined["deduplicated"]) == (first["job_id"], True)
    with pytest.raises(RpcFailed) as refused:
        daemon.rpc("dev.enqueue.v1", **params("rejected", "reject"))
    assert refused.value.code == 4002
    behind = [daemon.rpc("dev.enqueue.v1", **params(f"after{n}", "after"))["job_id"] for n in range(3)]
    gate.touch()
    daemon.wait(first["job_id"], *behind)
    assert history.read_text().split() == ["first", "after0", "after1", "after2"]
    fresh = daemon.rpc("dev.enqueue.v1", **params("fresh", "reject"))
    daemon.wait(fresh["job_id"])


def test_a_lane_holds_over_queues_and_other_subjects_go_on(daemon: Daemon) -> None:
    running = daemon.command("sleep", "60", subject_key="s", queue="a")
    eventually(lambda: daemon.job(running)["state"] == "RUNNING")
    behind = daemon.command("true", subject_key="s", queue="b", on_duplicate="after")
    other = daemon.command("true", subject_key="t", queue="b")
    same_key_other_type = daemon.command("true", subject_key="s", queue="b", job_type="other")
    daemon.wait(other, same_key_other_type)
    assert daemon.job(behind)["state"] == "QUEUED"
    daemon.rpc("dev.cancel.v1", job_id=running)
    daemon.wait(behind)


# --- retry of finished jobs ---


def test_retry_makes_a_copy(daemon: Daemon, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    job_id = daemon.command("sh", "-c", f"test -e {mark}", tag="t", max_attempts=1, idempotency_key="k", priority=7)
    daemon.wait(job_id)
    before = daemon.job(job_id, "payload", "attempts")
    mark.touch()
    answer = daemon.rpc("dev.retry.v1", job_id=job_id)
    assert answer["retry_of"] == job_id
    [copy] = daemon.wait(answer["job_id"])
    assert (copy["state"], copy["retry_of"], copy["tag"], copy["priority"]) == ("DONE", job_id, "t", 7)
    assert copy["idempotency_key"] is None
    assert daemon.job(job_id, "payload", "attempts") == before


def test_a_live_job_cannot_be_retried(daemon: Daemon) -> None:
    job_id = daemon.command("true", schedule={"type": "AFTER", "delay_ms": 60_000})
    with pytest.raises(RpcFailed) as refused:
        daemon.rpc("dev.retry.v1", job_id=job_id)
    assert (refused.value.code, "SCHEDULED" in refused.value.message) == (4002, True)


@pytest.mark.parametrize("name", ["tag", "chain_group_id", "queue"])
def test_all_failed_ones_are_retried_once(daemon: Daemon, name: str) -> None:
    failed = [daemon.command("false", **{name: "mine"}) for _ in range(3)]
    good = daemon.command("true", **{name: "mine"})
    other = daemon.command("false", **{name: "other"})
    daemon.wait(*failed, good, other)
    answer = daemon.rpc("dev.retry.v1", **{name: "mine"})
    assert answer["retried_count"] == 3
    assert {j["retry_of"] for j in answer["jobs"]} == set(failed)
    copies = daemon.wait(*[j["job_id"] for j in answer["jobs"]])
    assert {j["state"] for j in copies} == {"FAILED"}
    assert daemon.rpc("dev.retry.v1", **{name: "mine"})["retried_count"] == 3  # the copies now, not the first ones


# --- contradictions ---


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"deadline": 1000}, "deadline"),
        ({"schedule": {"type": "AFTER", "delay_ms": 60_000}, "deadline": -1}, "deadline"),
        ({"ttl_ms": -5}, "ttl_ms"),
        ({"ttl_ms": 0}, "ttl_ms"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"backoff_factor": 0.5}, "backoff_factor"),
        ({"on_duplicate": "supersede"}, "on_duplicate"),
        ({"on_duplicate": "whatever", "subject_key": "s"}, "on_duplicate"),
        ({"max_attempts": -1}, "max_attempts"),
        ({"retry_base_delay_ms": 5000, "retry_max_delay_ms": 1000}, "retry_max_delay_ms"),
        ({"subject_key": "a\0b"}, "subject_key"),
        ({"subject_key": ""}, "subject_key"),
        ({"subject_key": "x" * 513}, "subject_key"),
    ],
)
def test_policies_that_contradict_are_refused_with_the_reason(
    daemon: Daemon, options: dict[str, Any], names: str
) -> None:
    if options.get("deadline") == -1:
        options = {**options, "deadline": now_ms() + 30_000}
    with pytest.raises(RpcFailed) as refused:
        daemon.command("true", **options)
    assert refused.value.code == 4000
    assert names in refused.value.message
    assert daemon.stats()["total_jobs"] == 0


# --- the matrix: every stop reason at every moment ---

REASONS = ["cancel", "timeout", "deadline", "superseded", "shutdown", "interrupted"]
MOMENTS = ["queued", "starting", "running", "in_grace", "exited_uncommitted", "exited"]
ENDS = {
    "cancel": ("CANCELLED", "cancelled"),
    "timeout": ("FAILED", "timeout"),
    "deadline": ("FAILED", "deadline"),
    "superseded": ("SUPERSEDED", "superseded"),
    "shutdown": ("FAILED", "interrupted"),
    "interrupted": ("FAILED", "interrupted"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("reason", REASONS)
def test_every_stop_reason_at_every_moment_has_one_end(tmp_path: Path, reason: str, moment: str) -> None:
    (tmp_path / "semantica.toml").write_text("shutdown_grace_ms = 100\n")
    ready, gate = tmp_path / "ready", tmp_path / "gate"
    os.mkfifo(gate)
    daemon = Daemon(tmp_path / "home")
    daemon.spawn(cwd=tmp_path)
    daemon.wait_ready()
    try:
        options: dict[str, Any] = {"subject_key": "s", "queue": "q", "grace_ms": 3000}
        soon = 1200 if moment in {"running", "in_grace"} else 700
        if reason == "timeout":
            options["timeout_ms"] = soon
        if reason == "deadline":
            options["deadline"] = now_ms() + soon
        if moment == "queued":
            daemon.rpc("queues.pause.v1", queue="q")
        script = {
            "queued": "true",
            "starting": "sleep 3",
            "running": f"touch {ready}; sleep 30",
            # Stops in order, but only after a while; another stop comes in between.
            "in_grace": f"trap 'touch {ready}; sleep 1; exit 0' TERM; while :; do sleep 0.02; done",
            "exited_uncommitted": f"echo $PPID > {ready}.new; mv {ready}.new {ready}; read x < {gate}",
            "exited": f"touch {ready}; exit 0",
        }[moment]
        job_id = daemon.command("sh", "-c", script, **options)
        if moment == "in_grace":
            eventually(lambda: daemon.job(job_id)["state"] == "RUNNING")
            eventually(lambda: daemon.job(job_id)["pid"])
        if moment in {"running", "exited"}:
            eventually(ready.exists)
        if moment == "exited":
            eventually(lambda: daemon.job(job_id)["state"] == "DONE")
        if moment == "exited_uncommitted":
            shim = freeze_shim(ready, gate)
            threading.Timer(1.5, thaw, [shim]).start()
        act(daemon, reason, job_id, tmp_path)
        if moment == "queued" and reason != "deadline":
            daemon.rpc("queues.resume.v1", queue="q")
        [job] = daemon.wait(job_id)
        assert (job["state"], job["end_cause"]) in expected(reason, moment), job
        assert daemon.job(job_id)["finished_at"] == job["finished_at"]
        eventually(lambda: daemon.stats()["system"]["running_processes"] == 0)
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.terminate()


def freeze_shim(ready: Path, gate: Path) -> int:
    """Let the command exit while its shim is stopped: it has ended, and nobody has noted it."""
    eventually(ready.exists)
    shim = int(ready.read_text())
    os.kill(shim, signal.SIGSTOP)
    children = Path(f"/proc/{shim}/task/{shim}/children")
    [command] = map(int, children.read_text().split())
    gate.write_text("go\n")
    eventually(lambda: not alive(command))
    return shim


def thaw(shim: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # the stop has woken it before
        os.kill(shim, signal.SIGCONT)


DONE = ("DONE", "success")


def expected(reason: str, moment: str) -> list[tuple[str, str]]:
    outlasted = reason in {"shutdown", "interrupted"}
    if moment == "exited" or (moment == "exited_uncommitted" and outlasted):
        return [DONE]
    if moment == "starting" and outlasted:
        return [ENDS[reason], DONE]  # proved never to have run, it is given back and runs
    if moment == "queued":
        ends = {"superseded": ("SUPERSEDED", "superseded"), "deadline": ("SKIPPED_DEADLINE", "deadline")}
        return [{"cancel": ENDS["cancel"], **ends}.get(reason, DONE)]
    return [ENDS[reason]]


def act(daemon: Daemon, reason: str, job_id: str, folder: Path) -> None:
    if reason == "cancel":
        with contextlib.suppress(RpcFailed):  # refused if it has ended; the end is looked at below
            daemon.rpc("dev.cancel.v1", job_id=job_id)
    elif reason == "superseded":
        daemon.rpc("dev.enqueue.v1", **command_params("true", subject_key="s", on_duplicate="supersede_running"))
    elif reason == "shutdown":
        assert daemon.terminate() == 0
        daemon.spawn(cwd=folder)
        daemon.wait_ready()
    elif reason == "interrupted":
        daemon.kill()
        daemon.spawn(cwd=folder)
        daemon.wait_ready()
