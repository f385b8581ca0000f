"""The states of the disk, each one reached and left with a job running through it, and what is told of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, Json, RpcFailed, eventually, running_daemon, stop_for_certain
from tests.faults.disk import FULL, SYNC
from tests.mounts import small_disk
from tests.powercut.load import RecordedDaemon

MIB = 2**20
EXIT_DISK_FAILED = 74


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 120 MiB."""
    with small_disk(tmp_path / "disk", 120) as point:
        yield point


def leave_free(disk: Path, size: int) -> Path:
    """Fill the disk up to so many bytes."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        usage = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, usage.f_bavail * usage.f_frsize - size)
    return filler


def state(daemon: Daemon) -> str:
    return str(daemon.stats()["disk"]["state"])


def reserve_is_there(daemon: Daemon) -> bool:
    return (daemon.home / "ballast").exists()


def refused(daemon: Daemon) -> RpcFailed:
    with pytest.raises(RpcFailed) as caught:
        daemon.command("true")
    assert caught.value.code == 4003
    assert caught.value.data["retry_after_ms"] > 0
    assert "Nothing was stored" in caught.value.message
    return caught.value


def accepted(daemon: Daemon) -> str | None:
    try:
        return daemon.command("true")
    except RpcFailed as error:
        if error.code != 4003:
            raise
        return None


def gated(gate: Path, code: int) -> list[str]:
    return ["sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.05; done; exit {code}"]


def said(daemon: Daemon, *words: str) -> str:
    """What the command line says about this home."""
    run = subprocess.run(
        [sys.executable, "-m", "semtask", *words], env=daemon.env, capture_output=True, text=True, check=False
    )
    return run.stdout


def gauges(daemon: Daemon) -> dict[str, float]:
    """The states by name, and `free`."""
    text = daemon.get("/metrics")[1].decode()
    states = re.findall(r'^semantica_disk_state\{state="(\w+)"\} (\S+)$', text, re.MULTILINE)
    free = re.findall(r"^(semantica_disk_free_bytes) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in [*states, *free]}


def test_low_takes_nothing_new_and_goes_on_with_what_is_queued(disk: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running_daemon(disk / "home", SEMANTICA_DISK_LOW_MB="40") as daemon:
        eventually(lambda: reserve_is_there(daemon))
        before = daemon.stats()["disk"]
        assert (before["state"], before["reason"], before["since"], before["low_bytes"]) == ("OK", None, None, 40 * MIB)
        daemon.rpc("queues.configure.v1", queue="one", concurrency=1)
        running, queued = (daemon.command(*gated(gate, code), queue="one") for code in (3, 4))
        eventually(lambda: daemon.job(running)["pid"])
        known_log = Path(daemon.job(running)["log_path"])
        lost = known_log.with_name(known_log.name.replace(running[:8], "01900000"))
        lost.write_text("of a job that is gone")

        filler = leave_free(disk, 30 * MIB)
        error = eventually(lambda: None if accepted(daemon) else refused(daemon))
        assert "the disk is nearly full" in error.message
        assert "MiB more" in error.message
        seen = daemon.stats()["disk"]
        assert seen["state"] == "LOW"
        assert 0 < seen["free_bytes"] < seen["low_bytes"]
        assert seen["since"] >= daemon.job(running)["started_at"]
        assert reserve_is_there(daemon)
        status, body = daemon.get("/readyz")
        assert (status, json.loads(body)["status"]) == (200, "ready")
        assert "nearly full" in json.loads(body)["detail"]
        assert "the disk is LOW, for" in said(daemon, "status")
        assert "the daemon calls it LOW: the disk is nearly full" in said(daemon, "doctor")
        shown = gauges(daemon)
        assert {name for name, value in shown.items() if value == 1} == {"LOW"}
        assert shown["semantica_disk_free_bytes"] < 40 * MIB
        eventually(lambda: not lost.exists(), what="room is made")

        gate.touch()
        ends = [(job["state"], job["exit_code"]) for job in daemon.wait(running, queued)]
        assert ends == [("FAILED", 3), ("FAILED", 4)]
        assert daemon.stderr().count("the disk is LOW") == 1

        # Left later than entered, and without a job that runs.
        filler.unlink()
        filler = leave_free(disk, 44 * MIB)
        eventually(lambda: 41 * MIB < daemon.stats()["disk"]["free_bytes"] < 45 * MIB)
        refused(daemon)
        filler.unlink()
        job_id = eventually(lambda: accepted(daemon))
        assert daemon.wait(job_id)[0]["state"] == "DONE"
        assert state(daemon) == "OK"


def test_a_commit_on_a_full_disk_makes_it_full_at_once(disk: Path, tmp_path: Path) -> None:
    """Between two looks at the free space, and with an end that is recorded where the reserve was."""
    gate = tmp_path / "gate"
    with running_daemon(disk / "home") as daemon:
        eventually(lambda: reserve_is_there(daemon))
        daemon.rpc("queues.pause.v1", queue="default")
        waiting = daemon.command("true")
        running = daemon.command(*gated(gate, 7), queue="other")
        eventually(lambda: daemon.job(running)["pid"])
        leave_free(disk, 0)
        gate.touch()
        [job] = daemon.wait(running)
        assert (job["state"], job["exit_code"], job["attempts"]) == ("FAILED", 7, 1)
        eventually(lambda: state(daemon) == "FULL")
        assert not reserve_is_there(daemon)
        assert "the disk is full; free" in refused(daemon).message
        assert daemon.get("/readyz")[0] == 503
        assert "the disk is FULL, for" in said(daemon, "status")
        assert gauges(daemon)["FULL"] == 1
        daemon.rpc("queues.resume.v1", queue="default")  # a change of what is stored is no new work
        job = daemon.job(waiting)
        assert (job["state"], job["waiting"]["reason"]) == ("QUEUED", "machine_full")
        assert "the disk is full" in job["waiting"]["text"]
        (disk / "filler").unlink()
        assert daemon.wait(waiting)[0]["state"] == "DONE"
        eventually(lambda: state(daemon) == "OK" and reserve_is_there(daemon))
        assert daemon.get("/readyz")[0] == 200


def test_a_disk_that_refuses_with_room_on_it_is_full_too(tmp_path: Path) -> None:
    """As with a quota. Nothing runs, and the free space tells nothing."""
    daemon = RecordedDaemon(tmp_path / "home").start()
    try:
        eventually(lambda: reserve_is_there(daemon))
        daemon.suffer(FULL)
        assert "disk with the database is full" in refused(daemon).message
        eventually(lambda: state(daemon) == "FULL" and not reserve_is_there(daemon))
        daemon.suffer()
        assert eventually(lambda: accepted(daemon))
        eventually(lambda: state(daemon) == "OK" and reserve_is_there(daemon))
    finally:
        stop_for_certain(daemon)


def test_a_disk_that_fails_for_a_while_is_degraded_and_gets_well_without_a_restart(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    daemon = RecordedDaemon(tmp_path / "home", TEST_DISK_RETRY_S="0.3").start()
    try:
        pid = daemon.pid
        running = daemon.command(*gated(gate, 7), queue="other")
        eventually(lambda: daemon.job(running)["pid"])
        daemon.rpc("queues.configure.v1", queue="default", concurrency=1)
        first, waiting = (daemon.command(*gated(gate, code)) for code in (8, 0))
        eventually(lambda: daemon.job(first)["pid"])
        daemon.suffer(SYNC)
        gate.touch()
        eventually(lambda: state(daemon) == "DEGRADED")
        assert "cannot be written now" in refused(daemon).message
        assert daemon.get("/readyz")[0] == 503
        assert gauges(daemon)["DEGRADED"] == 1
        assert "the daemon calls it DEGRADED" in said(daemon, "doctor")
        assert daemon.job(running)["state"] == daemon.job(first)["state"] == "RUNNING"
        job = daemon.job(waiting)
        assert (job["claim_no"], job["waiting"]["reason"]) == (0, "machine_full")
        assert "cannot be written now" in job["waiting"]["text"]
        daemon.suffer()
        ends = [(job["state"], job["exit_code"], job["attempts"]) for job in daemon.wait(running, first, waiting)]
        assert ends == [("FAILED", 7, 1), ("FAILED", 8, 1), ("DONE", 0, 1)]
        assert eventually(lambda: accepted(daemon))
        assert state(daemon) == "OK"
        assert daemon.pid == pid
        assert daemon.stderr().count("the disk is DEGRADED") == 1
    finally:
        stop_for_certain(daemon)


def test_a_disk_that_goes_on_failing_is_given_up_and_the_end_is_found_later(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    backup = tmp_path / "jobs.db"
    daemon = RecordedDaemon(tmp_path / "home", TEST_DISK_RETRY_S="0.05").start()
    try:
        running = daemon.command(*gated(gate, 7))
        eventually(lambda: daemon.job(running)["pid"])
        assert "has the database" in said(daemon, "db", "backup", str(backup))
        daemon.suffer(SYNC)
        gate.touch()
        assert daemon.process is not None
        assert daemon.process.wait(30) == EXIT_DISK_FAILED
        [line] = [line for line in daemon.stderr().splitlines() if "CRITICAL" in line]
        assert f"semtask db restore {backup}" in line
        assert "Traceback" not in daemon.stderr()
        daemon.suffer()
        daemon.start()
        [job] = daemon.wait(running)
        assert (job["state"], job["exit_code"], job["attempts"]) == ("FAILED", 7, 1)
    finally:
        stop_for_certain(daemon)


def test_a_damaged_page_is_named_and_only_in_the_way_of_its_jobs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    daemon = RecordedDaemon(tmp_path / "home", TEST_DISK_RETRY_S="0.1").start()
    try:
        said(daemon, "db", "backup", str(tmp_path / "jobs.db"))
        running = daemon.command(*gated(gate, 7), queue="other")
        eventually(lambda: daemon.job(running)["pid"])
        notes = [_note(number) for number in range(3000)]
        ids = [job["job_id"] for job in daemon.rpc("dev.enqueue_many.v1", jobs=notes)["jobs"]]
        daemon.rpc("admin.maintenance.v1")
        sound = spoil(daemon.home / "meta.db", b"note-1500-")

        with pytest.raises(RpcFailed, match="cannot be read") as caught:
            daemon.job(ids[1500])
        assert caught.value.code == 5001
        reason = eventually(lambda: _named(daemon), what=f"the damage is named: {daemon.stats()['disk']}")
        assert "the database is damaged: table jobs page" in reason
        assert f"semtask db restore {tmp_path / 'jobs.db'}" in reason
        assert state(daemon) == "DEGRADED"
        assert "is damaged" in refused(daemon).message
        assert daemon.job(ids[0])["state"] == daemon.job(ids[2999])["state"] == "QUEUED"
        assert daemon.rpc("dev.cancel.v1", job_id=ids[2999])["cancelled"]
        with pytest.raises(RpcFailed) as caught:
            daemon.rpc("dev.cancel.v1", job_id=ids[1500])
        assert caught.value.code == 5001
        gate.touch()
        [job] = daemon.wait(running)
        assert (job["state"], job["exit_code"], job["attempts"]) == ("FAILED", 7, 1)

        eventually(lambda: "it is not looked through again" in daemon.stderr())
        for _ in range(20):
            with pytest.raises(RpcFailed):
                daemon.job(ids[1500])
        assert daemon.stderr().count("the disk is DEGRADED") == 1
        assert daemon.job(ids[0])["state"] == "QUEUED"
        stop_for_certain(daemon)
        repair(daemon.home / "meta.db", sound)
        daemon.start()
        assert daemon.job(ids[1500])["state"] == "QUEUED"
        assert accepted(daemon)
    finally:
        stop_for_certain(daemon)


def test_a_page_that_could_not_be_read_for_a_moment_is_forgotten(tmp_path: Path) -> None:
    daemon = RecordedDaemon(tmp_path / "home", TEST_DISK_RETRY_S="0.2").start()
    try:
        jobs = daemon.rpc("dev.enqueue_many.v1", jobs=[_note(number) for number in range(3000)])["jobs"]
        daemon.rpc("admin.maintenance.v1")
        sound = spoil(daemon.home / "meta.db", b"note-1500-")
        with pytest.raises(RpcFailed, match="cannot be read"):
            daemon.job(jobs[1500]["job_id"])
        assert state(daemon) == "DEGRADED"
        repair(daemon.home / "meta.db", sound)
        eventually(lambda: state(daemon) == "OK")
        assert accepted(daemon)
        assert daemon.job(jobs[1500]["job_id"])["state"] == "QUEUED"
    finally:
        stop_for_certain(daemon)


def test_a_daemon_that_cannot_tell_what_ran_does_not_start_and_says_why_in_one_line(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "home").start()
    try:
        said(daemon, "db", "backup", str(tmp_path / "jobs.db"))
        job_id = daemon.command("sleep", "600", env={"MARK": "note-of-what-runs"})
        eventually(lambda: daemon.job(job_id)["pid"])
        daemon.rpc("dev.enqueue_many.v1", jobs=[_note(number) for number in range(100)])
        daemon.rpc("admin.maintenance.v1")
        daemon.kill()
        sound = spoil(daemon.home / "meta.db", b"note-of-what-runs")
        before = len(daemon.stderr().splitlines())
        assert daemon.spawn().wait(20) == EXIT_DISK_FAILED
        [line] = daemon.stderr().splitlines()[before:]
        assert line.startswith(f"semtask: the database {daemon.home / 'meta.db'} is damaged: ")
        assert f"semtask db restore {tmp_path / 'jobs.db'}" in line
        repair(daemon.home / "meta.db", sound)
        daemon.start()
        assert [job["end_cause"] for job in daemon.wait(job_id)] == ["interrupted"]
    finally:
        stop_for_certain(daemon)


def _note(number: int) -> Json:
    """A job that waits for its task."""
    text = f"note-{number}-" + "x" * 1500
    return {"job_type": "note", "execution_mode": "IN_PROCESS", "payload": {"text": text}, "durability": "os"}


def _named(daemon: Daemon) -> str | None:
    reason = daemon.stats()["disk"]["reason"]
    return str(reason) if "damaged:" in reason else None


def spoil(database: Path, marker: bytes) -> tuple[int, bytes]:
    """Write nonsense over the head of the page with the marker: where, and what was there."""
    content = database.read_bytes()
    size = int.from_bytes(content[16:18], "big")
    at = content.index(marker) // size * size
    assert content[at] == 0x0D, "a leaf of a table"
    sound = content[at : at + 8]
    repair(database, (at, b"\xff" * 8))
    return at, sound


def repair(database: Path, sound: tuple[int, bytes]) -> None:
    with database.open("r+b") as file:
        file.seek(sound[0])
        file.write(sound[1])
        os.fsync(file.fileno())
