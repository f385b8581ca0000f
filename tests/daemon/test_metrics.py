"""What an operator sees of a real daemon: /metrics as a scraper reads it, and the log as a machine reads it."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.rig import Daemon, Json, RpcFailed, command_params, eventually, running_daemon, stop_for_certain
from tests.telemetry.scraped import Scraped

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def scrape(daemon: Daemon) -> Scraped:
    status, text = daemon.get("/metrics")
    assert status == 200, text
    return Scraped(text)


def log_lines(daemon: Daemon) -> list[Json]:
    return [json.loads(line) for line in (daemon.home / "logs" / "daemon.log").read_text().splitlines()]


def lines_about(daemon: Daemon, job_id: str) -> list[Json]:
    return [line for line in log_lines(daemon) if line.get("job_id") == job_id]


@pytest.fixture
def json_daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running_daemon(tmp_path / "home", SEMANTICA_LOG_FORMAT="json") as daemon:
        yield daemon


# --- metrics ---


def test_a_fresh_daemon_says_what_it_is_and_counts_nothing(daemon: Daemon) -> None:
    scraped = scrape(daemon)
    [build] = [s.labels for s in scraped.samples if s.name == "semantica_build_info"]
    assert build["version"] == daemon.stats()["version"]
    assert int(scraped.value("process_resident_memory_bytes") or 0) > 1_000_000
    assert not scraped.labels("semantica_jobs_enqueued_total", "queue")
    assert scraped.value("semantica_throttled", reason="store") == 0
    for name in ("recovery_orphaned_jobs", "orphans_killed", "worker_retry_count", "system_cpu_throttle_events"):
        assert scraped.value(f"semantica_{name}_total") == 0


def test_every_end_is_counted_by_queue_task_and_outcome(daemon: Daemon, tmp_path: Path) -> None:
    flaky = f"test -e {tmp_path}/again || {{ touch {tmp_path}/again; exit 1; }}"
    running = daemon.command("sleep", "100", queue="stopped")
    eventually(lambda: daemon.job(running)["state"] == "RUNNING")
    waiting = daemon.command("true", queue="stopped", schedule={"type": "AFTER", "delay_ms": 600_000})
    ids = [
        daemon.command("sleep", "0.06", queue="good"),
        daemon.command("true", queue="good"),
        daemon.command("sh", "-c", "exit 3", queue="bad"),
        daemon.command("no-such-program-anywhere", queue="bad"),
        daemon.command("sh", "-c", flaky, queue="flaky", max_attempts=2, retry_base_delay_ms=1),
        daemon.command("sleep", "100", queue="slow", timeout_ms=50),
    ]
    for job_id in (running, waiting):
        daemon.rpc("dev.cancel.v1", job_id=job_id)
    daemon.wait(*ids, running, waiting)

    scraped = scrape(daemon)
    finished = {
        (s.labels["queue"], s.labels["task"], s.labels["outcome"]): s.value
        for s in scraped.samples
        if s.name == "semantica_jobs_finished_total"
    }
    assert finished == {
        ("good", "command", "success"): 2,
        ("bad", "command", "exit_code"): 1,
        ("bad", "command", "spawn_failed"): 1,
        ("flaky", "command", "success"): 1,
        ("slow", "command", "timeout"): 1,
        ("stopped", "command", "cancelled"): 2,
    }
    assert scraped.value("semantica_jobs_enqueued_total", queue="good", task="command", kind="SUBPROCESS") == 2
    assert scraped.value("semantica_jobs_retried_total", queue="flaky", task="command") == 1
    assert scraped.value("semantica_jobs", queue="good", state="DONE") == 2
    assert scraped.value("semantica_jobs", queue="bad", state="FAILED") == 2
    assert scraped.value("semantica_jobs", queue="stopped", state="CANCELLED") == 2
    assert scraped.value("semantica_jobs", queue="stopped", state="RUNNING") == 0
    eventually(lambda: scrape(daemon).value("semantica_worker_retry_count_total") == 1)

    # Eight attempts were claimed; the waiting job never was.
    waits = [s for s in scraped.samples if s.name == "semantica_job_queue_wait_seconds_count"]
    assert sum(s.value for s in waits) == 8
    assert all(s.value < 30 for s in scraped.samples if s.name == "semantica_job_queue_wait_seconds_sum")
    durations = scraped.value("semantica_job_duration_seconds_sum", task="command")
    assert durations is not None
    assert 0.06 + 0.05 <= durations < 60
    assert scraped.value("semantica_rpc_requests_total", method="dev.enqueue.v1", code="0") == 8
    assert int(scraped.value("semantica_db_commit_seconds_count") or 0) >= 8 + 8
    assert int(scraped.value("semantica_db_size_bytes") or 0) > int(scraped.value("semantica_db_wal_bytes") or 0) > 0


def test_the_age_of_the_oldest_ready_job_grows_until_it_runs(daemon: Daemon) -> None:
    daemon.rpc("queues.pause.v1", queue="stuck")
    first = daemon.command("true", queue="stuck")
    waits_since = daemon.job(first)["created_at"] / 1000
    daemon.command("true", queue="later", schedule={"type": "AFTER", "delay_ms": 600_000})
    later = daemon.command("true", queue="stuck", priority=9)

    def age(queue: str) -> float:
        value = scrape(daemon).value("semantica_queue_oldest_ready_age_seconds", queue=queue)
        assert value is not None
        return value

    eventually(lambda: age("stuck") > 0.2)
    assert age("stuck") <= time.time() - waits_since
    assert age("later") == 0
    daemon.rpc("queues.resume.v1", queue="stuck")
    daemon.wait(first, later)
    assert age("stuck") == 0


def test_superseded_jobs_are_counted(daemon: Daemon) -> None:
    daemon.rpc("queues.pause.v1", queue="lane")
    for _ in range(3):
        daemon.command("true", queue="lane", subject_key="same")
    scraped = scrape(daemon)
    assert scraped.value("semantica_jobs_superseded_total") == 2
    assert scraped.value("semantica_jobs_finished_total", queue="lane", outcome="superseded") == 2


def test_refused_requests_are_counted_by_code(daemon: Daemon) -> None:
    for params in ({"job_type": "x"}, {"job_type": "x\n", "payload": {}}):
        with pytest.raises(RpcFailed):
            daemon.rpc("dev.enqueue.v1", **params)
    with pytest.raises(RpcFailed):
        daemon.rpc("canary.method")
    scraped = scrape(daemon)
    assert scraped.value("semantica_rpc_requests_total", method="dev.enqueue.v1", code="4000") == 2
    assert scraped.value("semantica_rpc_requests_total", method="_other", code="-32601") == 1
    assert "canary" not in scraped.text


def test_what_a_crash_left_is_counted_by_the_next_daemon(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("sleep", "100")
        eventually(lambda: daemon.job(job_id)["pid"])
        daemon.kill()
        daemon.start()
        daemon.wait(job_id)
        scraped = scrape(daemon)
        assert scraped.value("semantica_recovery_orphaned_jobs_total") == 1
        assert scraped.value("semantica_jobs_finished_total", queue="default", outcome="interrupted") == 1
        # How long it ran nobody knows: the daemon that started it is dead.
        assert scraped.value("semantica_job_duration_seconds_count", task="command") is None


def test_names_of_others_break_nothing_and_nothing_private_is_told(daemon: Daemon) -> None:
    hostile = ['evil"} 1 semantica_fake{a="b"} 1', "back\\slash\\n", "\\", '"', "nothing odd"]
    private: dict[str, Any] = {
        "tag": "canary-tag",
        "subject_key": "canary-subject",
        "idempotency_key": "canary-key",
        "chain_group_id": "canary-group",
    }
    ids = [daemon.command("echo", "canary-argument", env={"SECRET": "canary-env"}, **private)]
    ids += [daemon.rpc("dev.enqueue.v1", **{**command_params("true"), "job_type": name})["job_id"] for name in hostile]
    daemon.wait(*ids)
    scraped = scrape(daemon)
    assert scraped.labels("semantica_jobs_enqueued_total", "task") == {*hostile, "command"}
    assert scraped.labels("semantica_jobs_finished_total", "task") == {*hostile, "command"}
    assert "semantica_fake" not in scraped.families
    assert "canary" not in scraped.text
    for job_id in ids:
        assert job_id not in scraped.text
    log = (daemon.home / "logs" / "daemon.log").read_text()
    assert ids[0] in log
    assert "canary" not in log
    assert "\nsemantica_fake" not in log


@pytest.mark.alone
def test_a_thousand_queues_do_not_stop_the_daemon_for_a_scrape(daemon: Daemon) -> None:
    later = {"type": "AFTER", "delay_ms": 600_000}
    names = [(f"q{n}", f"t{n % 7}") for n in range(1000)] + [(f"q{n}", f"t{m}") for n in range(200) for m in range(7)]
    jobs = [{**command_params("true", queue=queue, tag="all", schedule=later), "job_type": t} for queue, t in names]
    daemon.rpc("dev.enqueue_many.v1", jobs=jobs)
    daemon.rpc("dev.cancel.v1", tag="all")
    scraped = scrape(daemon)
    assert len(scraped.samples) < 6000
    for name in ("semantica_jobs", "semantica_jobs_enqueued_total", "semantica_jobs_finished_total"):
        assert sum(s.value for s in scraped.samples if s.name == name) == len(jobs)
    done = threading.Event()

    def scrape_again_and_again() -> None:
        for _ in range(10):
            daemon.get("/metrics")
        done.set()

    scraper = threading.Thread(target=scrape_again_and_again)
    scraper.start()
    pings: list[float] = []
    with closing(daemon.connection()) as connection:
        while not done.is_set():
            start = time.perf_counter()
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            pings.append(time.perf_counter() - start)
    scraper.join()
    # A scrape takes some 30 ms: if it were written on the loop, nearly all of this time would go by in such pauses.
    paused = sum(ping for ping in pings if ping > 0.02)
    assert paused < 0.4 * sum(pings), sorted(pings)[-10:]


def test_over_tcp_the_token_is_asked_for(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    daemon = Daemon(home, SEMANTICA_TCP="on", SEMANTICA_RPC_PORT=str(free_port()))
    try:
        daemon.start()
        token = (home / "run" / "token").read_text().strip()
        port = int(daemon.env["SEMANTICA_RPC_PORT"])
        answers = {}
        for credentials in ("", "Bearer wrong", f"Bearer {token}"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/metrics", headers={"authorization": credentials} if credentials else {})
            response = connection.getresponse()
            answers[credentials] = (response.status, response.read())
            connection.close()
        assert [status for status, _ in answers.values()] == [401, 401, 200]
        assert b"semantica_build_info" in answers[f"Bearer {token}"][1]
        assert b"semantica_" not in answers[""][1] + answers["Bearer wrong"][1]
        assert token.encode() not in answers[f"Bearer {token}"][1]
    finally:
        stop_for_certain(daemon)


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# --- log and trace ---


def test_each_attempt_is_a_line_that_names_job_claim_queue_end_and_trace(json_daemon: Daemon, tmp_path: Path) -> None:
    daemon = json_daemon
    flaky = f"test -e {tmp_path}/again || {{ touch {tmp_path}/again; exit 1; }}"
    job_id = daemon.command(
        "sh", "-c", flaky, queue="builds", max_attempts=2, retry_base_delay_ms=1, traceparent=TRACEPARENT
    )
    daemon.wait(job_id)
    first, second = eventually(lambda: len(lines := lines_about(daemon, job_id)) == 2 and lines)
    for line, claim_no, state, end_cause in ((first, 1, "SCHEDULED", "exit_code"), (second, 2, "DONE", "success")):
        duration = line.pop("duration_ms")
        assert 0 < duration < 30_000
        assert line.pop("ts") <= time.strftime("%Y-%m-%dT%H:%M:%S.999Z", time.gmtime())
        assert line == {
            "level": "info",
            "event": "attempt ended",
            "logger": "semtask.attempt",
            "job_id": job_id,
            "claim_no": claim_no,
            "queue": "builds",
            "task": "command",
            "state": state,
            "end_cause": end_cause,
            "trace_id": TRACE,
        }


def test_the_trace_of_the_caller_reaches_the_command_and_the_log(json_daemon: Daemon) -> None:
    daemon = json_daemon
    traced = daemon.command("printenv", "TRACEPARENT", traceparent=TRACEPARENT)
    untraced = daemon.command("sh", "-c", "echo ${TRACEPARENT-none}")
    daemon.wait(traced, untraced)
    assert daemon.log(traced) == f"{TRACEPARENT}\n"
    assert daemon.log(untraced) == "none\n"
    eventually(lambda: lines_about(daemon, traced) and lines_about(daemon, untraced))
    assert [line["trace_id"] for line in lines_about(daemon, traced)] == [TRACE]
    assert ["trace_id" in line for line in lines_about(daemon, untraced)] == [False]


def test_the_trace_is_kept_over_a_crash(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home", SEMANTICA_LOG_FORMAT="json") as daemon:
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        job_id = daemon.command(
            "sh", "-c", f"echo $TRACEPARENT; read x < {gate}", on_interrupt="requeue", traceparent=TRACEPARENT
        )
        eventually(lambda: daemon.job(job_id)["pid"])
        daemon.kill()
        daemon.start()
        eventually(lambda: (job := daemon.job(job_id))["claim_no"] == 2 and job["pid"])
        gate.write_text("go\n")
        [job] = daemon.wait(job_id)
        assert (job["state"], job["trace_context"]) == ("DONE", TRACEPARENT)
        assert daemon.log(job_id) == f"{TRACEPARENT}\n"
        lines = eventually(lambda: len(lines := lines_about(daemon, job_id)) == 2 and lines)
        assert [(line["claim_no"], line["end_cause"], line["trace_id"]) for line in lines] == [
            (1, "interrupted", TRACE),
            (2, "success", TRACE),
        ]
        assert ["duration_ms" in line for line in lines] == [False, True]


def test_a_broken_traceparent_is_refused(daemon: Daemon) -> None:
    for broken in (
        "",
        TRACE,
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff{TRACEPARENT[2:]}",
    ):
        with pytest.raises(RpcFailed) as refused:
            daemon.command("true", traceparent=broken)
        assert (refused.value.code, refused.value.data["details"]["parameter"]) == (4000, "traceparent")
