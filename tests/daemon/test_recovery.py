"""What is left when something is killed with -9, and what the next daemon makes of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, alive, eventually, processes_of, running_daemon

TREE = """
echo $$ >> "$1"
setsid sh -c 'trap "" TERM; echo $$ >> "$1"; while :; do sleep 0.2; done' sh "$1" &
( setsid sh -c 'echo $$ >> "$1"; exec sleep 1000' sh "$1" & )
sleep 1000
"""


def helpers_of(daemon: Daemon) -> dict[int, int]:
    """pid -> parent of the launcher and the shims."""
    found: dict[int, int] = {}
    wanted = {daemon.pid}
    grown = True
    while grown:
        grown = False
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) in found:
                continue
            try:
                stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                cmdline = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if int(stat[1]) in wanted and b"launcher" in cmdline:
                found[int(entry)] = int(stat[1])
                wanted.add(int(entry))
                grown = True
    return found


def launcher_of(daemon: Daemon) -> int:
    found: list[int] = eventually(lambda: [p for p, parent in helpers_of(daemon).items() if parent == daemon.pid])
    return found[0]


def pids_in(path: Path, count: int) -> list[int]:
    eventually(lambda: path.exists() and len(path.read_text().split()) == count, what=f"{count} pids in {path}")
    return [int(pid) for pid in path.read_text().split()]


def test_queued_jobs_survive_and_running_ones_follow_on_interrupt(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        requeued = daemon.command("sh", "-c", "sleep 0.5; echo ran", queue="a", on_interrupt="requeue")
        failed = daemon.command("sleep", "60", queue="b", on_interrupt="fail")
        by_default = daemon.command("sleep", "60", queue="c")
        daemon.rpc("queues.pause.v1", queue="d")
        queued = daemon.command("true", queue="d")
        eventually(lambda: daemon.stats()["running_jobs"] == 3)
        daemon.kill()
        daemon.start()
        assert daemon.job(queued)["waiting"]["reason"] == "queue_paused"
        daemon.rpc("queues.resume.v1", queue="d")
        again, lost, default, later = daemon.wait(requeued, failed, by_default, queued)
        assert (again["state"], again["interruptions"], again["claim_no"]) == ("DONE", 1, 2)
        assert (lost["state"], lost["end_cause"]) == ("FAILED", "interrupted")
        assert (default["state"], default["end_cause"]) == ("FAILED", "interrupted")
        assert later["state"] == "DONE"
        assert daemon.stats()["counters"]["recovery.orphaned_jobs"] == 3
        causes = [a["end_cause"] for a in daemon.job(requeued, "attempts")["attempts_list"]]
        assert causes == ["interrupted", "success"]


def test_a_tree_is_gone_after_the_daemon_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("sh", "-c", TREE, "sh", str(pids), grace_ms=300)
        tree = pids_in(pids, 3)
        daemon.kill()
        eventually(lambda: not any(alive(pid) for pid in tree), within=5, what="the tree dies with its daemon")
        eventually(lambda: not processes_of(daemon.home), within=5, what="helpers leave with their daemon")
        daemon.start()
        assert daemon.wait(job_id)[0]["end_cause"] == "interrupted"


def test_a_job_that_ended_while_no_daemon_ran_is_not_run_again(tmp_path: Path) -> None:
    """The record of the shim counts, although nobody was there to read it."""
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    os.mkfifo(gate)
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("sh", "-c", f"echo x >> {ran}; read x < {gate}; exit 5", on_interrupt="requeue")
        eventually(ran.exists)
        os.kill(daemon.pid, signal.SIGSTOP)
        gate.write_text("go\n")
        record = daemon.home / "attempts" / f"{job_id}.1" / "record"
        eventually(record.exists, what="the shim has written its record")
        daemon.kill()
        daemon.start()
        [job] = daemon.wait(job_id)
        assert (job["state"], job["exit_code"], job["claim_no"]) == ("FAILED", 5, 1)
        assert ran.read_text() == "x\n"


def test_running_jobs_go_on_when_the_launcher_is_killed(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running_daemon(tmp_path / "home", SEMANTICA_MAX_PROCESSES="60") as daemon:
        daemon.rpc("queues.configure.v1", queue="many", concurrency=50)
        script = f"while [ ! -e {gate} ]; do sleep 0.1; done; echo end"
        ids = [daemon.command("sh", "-c", script, queue="many") for _ in range(50)]
        eventually(lambda: daemon.stats()["running_jobs"] == 50)
        eventually(lambda: all(daemon.job(job_id)["pid"] for job_id in ids))
        first = launcher_of(daemon)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: launcher_of(daemon) != first)
        after = daemon.command("echo", "served", queue="other")
        assert daemon.wait(after)[0]["state"] == "DONE"
        gate.touch()
        jobs = daemon.wait(*ids)
        assert {(j["state"], j["claim_no"], j["attempts"]) for j in jobs} == {("DONE", 1, 1)}
        assert all(daemon.log(job_id) == "end\n" for job_id in ids)


def test_a_killed_shim_is_a_crash_and_its_tree_goes(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("sh", "-c", TREE, "sh", str(pids), on_interrupt="requeue")
        tree = pids_in(pids, 3)
        launcher = launcher_of(daemon)
        [shim] = [pid for pid, parent in helpers_of(daemon).items() if parent == launcher]
        os.kill(shim, signal.SIGKILL)
        [job] = daemon.wait(job_id)
        assert (job["state"], job["end_cause"], job["crashes"]) == ("FAILED", "worker_crash", 1)
        assert not [pid for pid in tree if alive(pid)]
        daemon.wait(daemon.command("true"))


def test_what_outlives_daemon_launcher_and_shims_is_found_by_its_nonce(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with running_daemon(tmp_path / "home") as daemon:
        script = 'setsid sh -c \'trap "" TERM HUP; echo $$ >> "$1"; while :; do sleep 0.2; done\' sh "$1" & wait'
        job_id = daemon.command("sh", "-c", script, "sh", str(pids))
        [survivor] = pids_in(pids, 1)
        helpers = list(helpers_of(daemon))
        # All in one go: none of them may act on the death of another.
        for pid in [daemon.pid, *helpers]:
            os.kill(pid, signal.SIGSTOP)
        for pid in [*helpers, daemon.pid]:
            os.kill(pid, signal.SIGKILL)
        assert daemon.process is not None
        daemon.process.wait()
        assert alive(survivor)
        daemon.start()
        [job] = daemon.wait(job_id)
        assert (job["state"], job["end_cause"]) == ("FAILED", "interrupted")
        assert not alive(survivor)
        assert daemon.stats()["counters"]["recovery.zombies_cleaned"] >= 1


def test_a_job_of_a_locked_attempt_keeps_its_state_until_the_lock_frees(tmp_path: Path) -> None:
    """A shim that has not yet ended its tree when the next daemon starts: no second run beside the first."""
    pids, marks = tmp_path / "pids", tmp_path / "marks"
    with running_daemon(tmp_path / "home") as daemon:
        script = 'echo $$ >> "$1"; echo start >> "$2"; trap "" TERM; while [ -e "$2.hold" ]; do sleep 0.05; done'
        Path(f"{marks}.hold").touch()
        job_id = daemon.command(
            "sh", "-c", script, "sh", str(pids), str(marks), on_interrupt="requeue", grace_ms=60_000
        )
        [pid] = pids_in(pids, 1)
        launcher = launcher_of(daemon)
        [shim] = [p for p, parent in helpers_of(daemon).items() if parent == launcher]
        os.kill(shim, signal.SIGSTOP)
        try:
            daemon.kill()
            daemon.start()
            job = daemon.job(job_id)
            assert (job["state"], job["stop_reason"], job["claim_no"]) == ("RUNNING", "interrupted", 1)
            assert daemon.stats()["system"]["running_processes"] == 1
            assert alive(pid)
        finally:
            os.kill(shim, signal.SIGCONT)
            Path(f"{marks}.hold").unlink()
        [job] = daemon.wait(job_id)
        assert (job["state"], job["claim_no"]) == ("DONE", 2)
        assert daemon.stats()["system"]["running_processes"] == 0
        assert not alive(pid)


def test_interruptions_have_a_cap(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("sleep", "60", on_interrupt="requeue", grace_ms=0)
        for n in range(21):
            eventually(lambda: daemon.job(job_id)["pid"], what=f"run {n + 1}")
            daemon.kill()
            daemon.start()
        [job] = daemon.wait(job_id)
        assert (job["state"], job["end_cause"], job["interruptions"]) == ("FAILED", "quarantined", 21)


@pytest.mark.parametrize("on_interrupt", ["fail", "requeue"])
def test_sigterm_lets_jobs_end_and_then_stops_them(tmp_path: Path, on_interrupt: str) -> None:
    (tmp_path / "semantica.toml").write_text("shutdown_grace_ms = 700\n")
    daemon = Daemon(tmp_path / "home")
    daemon.spawn(cwd=tmp_path)
    daemon.wait_ready()
    short = daemon.command("sh", "-c", "sleep 0.3; echo whole", queue="a")
    long = daemon.command("sleep", "60", queue="b", on_interrupt=on_interrupt)
    eventually(lambda: daemon.stats()["running_jobs"] == 2)
    assert daemon.terminate() == 0
    assert not processes_of(daemon.home)
    daemon.spawn(cwd=tmp_path)
    daemon.wait_ready()
    done = daemon.job(short)
    assert (done["state"], daemon.log(short)) == ("DONE", "whole\n")
    stopped = daemon.job(long)
    if on_interrupt == "fail":
        assert (stopped["state"], stopped["end_cause"], stopped["stop_reason"]) == ("FAILED", "interrupted", "shutdown")
    else:
        assert stopped["state"] in {"QUEUED", "RUNNING"}
        assert stopped["interruptions"] == 1
        daemon.rpc("dev.cancel.v1", job_id=long)
        daemon.wait(long)
    assert daemon.stats()["counters"]["recovery.orphaned_jobs"] == 0
    assert daemon.terminate() == 0


def test_a_second_sigterm_stops_at_once(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    daemon = Daemon(tmp_path / "home").start()
    daemon.command("sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.1; done", grace_ms=60_000)
    eventually(ready.exists)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    eventually(lambda: daemon.get("/readyz")[0] == 503)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(8) == 0
    assert not processes_of(daemon.home)
