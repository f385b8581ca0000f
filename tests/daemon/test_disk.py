"""A machine without room: a full disk under the home, and no descriptors left to start a process with."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, RpcFailed, eventually, running_daemon
from tests.mounts import small_disk

MIB = 2**20
DISK = 100 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to be filled."""
    with small_disk(tmp_path / "disk", DISK // MIB) as point:
        yield point


def fill(path: Path) -> None:
    """Take every byte that is left on the disk of `path`."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * MIB)
        except OSError:
            pass


def ballast(daemon: Daemon) -> int:
    try:
        return (daemon.home / "ballast").stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def test_the_reserve_exists_while_the_daemon_runs(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        eventually(lambda: ballast(daemon) >= 32 * MIB)
        assert (daemon.home / "ballast").stat().st_mode & 0o777 == 0o600
        daemon.kill()
        assert ballast(daemon) >= 32 * MIB
        daemon.start()
    assert not (daemon.home / "ballast").exists()


def test_a_full_disk_loses_no_end_and_recovers_by_itself(disk: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running_daemon(disk / "home", SEMANTICA_MAX_PROCESSES="8") as daemon:
        eventually(lambda: ballast(daemon) >= 32 * MIB)
        script = f"while [ ! -e {gate} ]; do sleep 0.05; done; exit 7"
        running = [daemon.command("sh", "-c", script, queue=f"q{n}") for n in range(4)]
        eventually(lambda: all(daemon.job(job_id)["pid"] for job_id in running))
        fill(disk / "filler")
        gate.touch()
        # Their records, and the commits of their ends, go where the reserve was.
        assert {(j["state"], j["exit_code"], j["attempts"]) for j in daemon.wait(*running)} == {("FAILED", 7, 1)}
        assert ballast(daemon) == 0

        with pytest.raises(RpcFailed) as refused:
            daemon.command("true")
        assert refused.value.code == 4003
        assert refused.value.data["retry_after_ms"] >= 1000
        assert "disk is full" in refused.value.message
        assert daemon.stats()["failed_jobs"] == 4  # reading goes on

        (disk / "filler").unlink()
        job_id = eventually(lambda: accepted(daemon), what="new work is taken again")
        assert daemon.wait(job_id)[0]["state"] == "DONE"
        eventually(lambda: ballast(daemon) >= 32 * MIB, what="the reserve is there again")
        assert daemon.stats()["total_jobs"] == 5


def accepted(daemon: Daemon) -> str | None:
    try:
        return daemon.command("true")
    except RpcFailed as refused:
        if refused.code != 4003:
            raise
        return None


def test_what_waits_is_not_started_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running_daemon(disk / "home") as daemon:
        eventually(lambda: ballast(daemon) >= 32 * MIB)
        daemon.rpc("queues.configure.v1", queue="one", concurrency=1)
        script = f"while [ ! -e {gate} ]; do sleep 0.05; done"
        first, second = (daemon.command("sh", "-c", script, queue="one") for _ in range(2))
        eventually(lambda: daemon.job(first)["pid"])
        fill(disk / "filler")
        eventually(lambda: ballast(daemon) == 0, what="the reserve is given up")
        gate.touch()
        assert daemon.wait(first)[0]["state"] == "DONE"
        job = daemon.job(second)
        assert (job["state"], job["claim_no"], job["waiting"]["reason"]) == ("QUEUED", 0, "machine_full")
        assert "disk is full" in job["waiting"]["text"]
        (disk / "filler").unlink()
        assert daemon.wait(second)[0]["state"] == "DONE"


def test_a_full_disk_without_a_running_job_refuses_and_recovers(disk: Path) -> None:
    """Nothing looks at the disk then; the database says it."""
    with running_daemon(disk / "home") as daemon:
        eventually(lambda: ballast(daemon) >= 32 * MIB)
        daemon.rpc("queues.pause.v1", queue="default")
        fill(disk / "filler")
        with pytest.raises(RpcFailed) as refused:
            use_up(daemon)
        assert refused.value.code == 4003
        assert refused.value.data["retry_after_ms"] > 0
        (disk / "filler").unlink()
        assert eventually(lambda: accepted(daemon))


def use_up(daemon: Daemon) -> None:
    """The room that is left within the files of the database."""
    for _ in range(100):
        daemon.command("true", env={"X": "x" * 100_000})


def test_a_home_on_a_small_disk_works_without_a_reserve(tmp_path: Path, disk: Path) -> None:
    (disk / "other").write_bytes(b"x" * (DISK - 40 * MIB))
    with running_daemon(disk / "home") as daemon:
        assert daemon.wait(daemon.command("true"))[0]["state"] == "DONE"
        assert ballast(daemon) == 0
        assert "no room for a reserve" in daemon.stderr()


# --- no room to start a process ---------------------------------------------------------------------------------------


def test_without_descriptors_jobs_are_given_back_and_run_later(tmp_path: Path) -> None:
    """The launcher cannot take in the descriptors of a command; that is nobody's failure."""
    with running_daemon(tmp_path / "home", SEMANTICA_MAX_PROCESSES="4") as daemon:
        daemon.wait(daemon.command("true"))
        launcher = launcher_of(daemon)
        before = take_descriptors(launcher)
        ids = [daemon.command("true", queue=f"q{n}") for n in range(3)]
        eventually(lambda: any(daemon.job(job_id)["claim_no"] for job_id in ids))
        job = eventually(
            lambda: next(
                (j for j in map(daemon.job, ids) if (j["waiting"] or {}).get("reason") == "machine_full"), None
            ),
            what="claiming pauses",
        )
        assert (job["state"], job["attempts"], job["failures"]) == ("QUEUED", 0, 0)
        assert "claiming pauses" in job["waiting"]["text"]
        resource.prlimit(launcher, resource.RLIMIT_NOFILE, before)
        for job in daemon.wait(*ids, timeout_ms=60_000):
            assert (job["state"], job["attempts"], job["failures"], job["crashes"]) == ("DONE", 1, 0, 0)
        assert any(daemon.job(job_id)["claim_no"] > 1 for job_id in ids)


def test_the_pauses_grow_while_there_is_no_room(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        daemon.wait(daemon.command("true"))
        launcher = launcher_of(daemon)
        before = take_descriptors(launcher)
        begin = time.monotonic()
        job_id = daemon.command("true")
        eventually(lambda: "claiming pauses for 4 s" in daemon.stderr())
        assert time.monotonic() - begin > 2.9  # after those of 1 s and of 2 s
        # A claim can be under way when the shortage is seen.
        assert 3 <= daemon.job(job_id)["claim_no"] <= 4
        resource.prlimit(launcher, resource.RLIMIT_NOFILE, before)
        assert daemon.wait(job_id)[0]["attempts"] == 1


def take_descriptors(pid: int) -> tuple[int, int]:
    """Leave the process no number for another descriptor. Returns the limits that it had."""
    used = {int(number) for number in os.listdir(f"/proc/{pid}/fd")}
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    first_free = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, before[1]))
    return before


def launcher_of(daemon: Daemon) -> int:
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    [launcher] = [int(pid) for pid in children if b"launcher" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return launcher
