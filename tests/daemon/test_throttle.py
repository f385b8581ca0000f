"""A machine that is busy by processes of the test's own, and what the real daemon does about it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon.rig import Daemon, eventually, running_daemon

THRESHOLD = 95  # high, because other tests may run beside this one

pytestmark = pytest.mark.alone


@contextmanager
def all_processors_busy() -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
        for burner in burners:
            burner.wait()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running_daemon(
        tmp_path / "home", SEMANTICA_MAX_PROCESSES="8", SEMANTICA_CPU_THROTTLE_THRESHOLD=str(THRESHOLD)
    ) as running:
        yield running


def throttle(daemon: Daemon) -> dict[str, Any]:
    return dict(daemon.stats()["throttle"])


def until_idle(daemon: Daemon) -> None:
    """Something has made it look at the load; wait until it does so no more."""
    eventually(lambda: daemon.stats()["system"]["cpu_usage"] is not None, what="the load is looked at")
    eventually(lambda: daemon.stats()["system"]["cpu_usage"] is None, within=60, what="the daemon is idle")


@pytest.mark.timeout(300)
def test_background_work_waits_for_a_busy_machine_and_starts_again_by_itself(daemon: Daemon, tmp_path: Path) -> None:
    daemon.rpc("queues.configure.v1", queue="later", **{"class": "background"})
    until_idle(daemon)
    with all_processors_busy():
        eventually(lambda: psutil.cpu_percent(0.5) >= THRESHOLD, what="the machine is busy")
        before = time.time() * 1000
        # The daemon does not know the load yet: they must not slip through.
        low = daemon.command("touch", str(tmp_path / "low"), priority=-1)
        background = daemon.command("touch", str(tmp_path / "background"), queue="later", priority=50)
        state = eventually(lambda: (t := throttle(daemon))["active"] and t, what="the throttle is on")
        assert state["reason"].startswith("the machine is busy: CPU ")
        assert before < state["since"] <= time.time() * 1000
        assert daemon.stats()["system"]["cpu_usage"] > THRESHOLD - 10
        assert 0 < daemon.stats()["system"]["memory_usage"] < 100

        normal = daemon.command("true")
        interactive = daemon.command("true", queue="now", priority=0)
        assert {job["state"] for job in daemon.wait(normal, interactive)} == {"DONE"}
        for job_id in (low, background):
            job = daemon.job(job_id)
            assert (job["state"], job["claim_no"], job["waiting"]["reason"]) == ("QUEUED", 0, "throttled")
            assert "the machine is busy: CPU" in job["waiting"]["text"]
        status = subprocess.run(
            [sys.executable, "-m", "semtask", "status"], env=daemon.env, capture_output=True, text=True, check=True
        )
        assert re.search(
            r"^background work waits, for .* by now: the machine is busy: CPU", status.stdout, re.MULTILINE
        )
        assert daemon.stats()["counters"]["system.cpu_throttle_events"] == 1
        assert not list(tmp_path.glob("low")) + list(tmp_path.glob("background"))
    # Others may use this machine as well; then it takes as long as they do.
    eventually(lambda: not throttle(daemon)["active"], within=150, what="the machine is calm again")
    assert {job["state"] for job in daemon.wait(low, background)} == {"DONE"}
    assert throttle(daemon) == {"active": False, "reason": None, "since": None}


def test_a_calm_machine_hardly_delays_background_work(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home", SEMANTICA_CPU_THROTTLE_THRESHOLD="100") as daemon:
        if psutil.cpu_percent(1) > 80:
            pytest.skip("others keep this machine busy")
        daemon.rpc("queues.configure.v1", queue="later", **{"class": "background"})
        start = time.monotonic()
        daemon.wait(daemon.command("true", queue="later"), daemon.command("true", priority=-100))
        assert time.monotonic() - start < 5


def test_101_never_throttles_and_never_looks(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home", SEMANTICA_CPU_THROTTLE_THRESHOLD="101") as daemon:
        daemon.rpc("queues.configure.v1", queue="later", **{"class": "background"})
        with all_processors_busy():
            assert daemon.wait(daemon.command("sleep", "5", queue="later"))[0]["state"] == "DONE"
            assert not throttle(daemon)["active"]
        assert daemon.stats()["system"]["cpu_usage"] is None
        assert daemon.stats()["counters"]["system.cpu_throttle_events"] == 0


@pytest.mark.timeout(180)
def test_an_idle_daemon_does_not_wake_up(daemon: Daemon) -> None:
    """Long after the last job: no thread of the daemon is scheduled more than a few times in five seconds.

    On a busy machine one wake-up may give the processor away several times: one such time of several is enough.
    """
    daemon.wait(daemon.command("true"))
    until_idle(daemon)
    seen: list[int] = []
    while not seen or (seen[-1] > 8 and len(seen) < 6):
        before = switches(daemon.pid)
        time.sleep(5)  # the time that is measured
        seen.append(switches(daemon.pid) - before)
    assert seen[-1] <= 8, seen


def switches(pid: int) -> int:
    """How often the threads of a process gave their processor away: once or twice per wake-up."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        for line in Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total
