"""A disk below the database that is full, that cannot be written any more, or that yields no descriptors."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, RpcFailed, eventually, stop_for_certain
from tests.faults.disk import FULL, READ_ONLY, SYNC
from tests.faults.test_fsync import accepted, store
from tests.mounts import small_disk
from tests.powercut.load import RecordedDaemon
from tests.powercut.replay import replay


@pytest.mark.parametrize("ill", [FULL, READ_ONLY, SYNC])
def test_reading_goes_on_no_end_is_lost_and_the_daemon_recovers_by_itself(tmp_path: Path, ill: str) -> None:
    gate = tmp_path / "gate"
    daemon = RecordedDaemon(tmp_path / "home").start()
    try:
        first = store(daemon, "fsync")
        script = f"while [ ! -e {gate} ]; do sleep 0.02; done; exit 7"
        running = [daemon.command("sh", "-c", script, queue=f"q{n}") for n in range(2)]
        eventually(lambda: all(daemon.job(job_id)["pid"] for job_id in running))
        daemon.suffer(ill)
        with pytest.raises(RpcFailed) as refused:
            store(daemon, "fsync")
        assert refused.value.code == 4003
        assert refused.value.data["retry_after_ms"] > 0
        with pytest.raises(RpcFailed, match="Nothing was stored"):
            daemon.rpc("dev.cancel.v1", job_id=first)
        gate.touch()
        eventually(lambda: daemon.get("/readyz")[0] == 503, what="it says so")
        assert daemon.rpc("dev.wait.v1", job_ids=running, timeout_ms=1_500, mode="any")["timed_out"]
        assert daemon.job(first)["state"] == "QUEUED"
        assert daemon.stats()["total_jobs"] == 3
        daemon.suffer()
        for job in daemon.wait(*running):
            assert (job["state"], job["exit_code"], job["attempts"]) == ("FAILED", 7, 1)
        eventually(lambda: accepted(daemon), what="new work is taken again")
        daemon.kill()
    finally:
        stop_for_certain(daemon)
    verdict = replay(daemon.trace, 40, seed=11)
    assert not verdict.corrupt
    assert not verdict.lost
    assert verdict.kinds["ended"] >= 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    with small_disk(tmp_path / "home", 64) as point:
        yield point


@pytest.mark.parametrize("used_before", [False, True])
def test_on_a_read_only_file_system_the_daemon_does_not_start_and_says_why_in_one_line(
    disk: Path, used_before: bool
) -> None:
    daemon = Daemon(disk)
    if used_before:
        daemon.start().wait(daemon.command("true"))
        stop_for_certain(daemon)
    before = len(daemon.stderr().splitlines()) if used_before else 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert daemon.spawn().wait(20) not in {0, 100}
    [line] = daemon.stderr().splitlines()[before:]
    assert line.startswith("semtask: ")
    assert "ead-only" in line
