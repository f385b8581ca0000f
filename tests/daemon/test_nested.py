"""A job that uses semtask itself, with a home of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.daemon.rig import Daemon, eventually, processes_of, running_daemon

ASK = [sys.executable, "-m", "semtask", "--home"]


def test_a_job_may_call_the_command_line_of_another_home(daemon: Daemon, tmp_path: Path) -> None:
    """The other daemon runs apart: it sees none of the variables that name our attempt."""
    with running_daemon(tmp_path / "other") as other:
        inner = 'echo "inner $SEMANTICA_JOB_ID"; exit 7'
        job_id = daemon.command(*ASK, str(other.home), "run", "--", "sh", "-c", inner)
        [job] = daemon.wait(job_id)
        assert job["exit_code"] == 7
        [theirs] = other.rpc("dev.query_jobs.v1")["items"]
        assert theirs["exit_code"] == 7
        assert theirs["job_id"] != job_id
        assert f"inner {theirs['job_id']}" in daemon.log(job_id)


def test_a_daemon_that_a_job_started_goes_with_the_job_and_its_jobs_stay(daemon: Daemon, tmp_path: Path) -> None:
    """Nothing that a job started outlives it, not even a daemon; what that one accepted is stored all the same."""
    home = tmp_path / "other"
    job_id = daemon.command(*ASK, str(home), "run", "-d", "--at", "2200-01-01T00:00:00Z", "--", "true")
    [job] = daemon.wait(job_id)
    assert job["state"] == "DONE", daemon.log(job_id)
    eventually(lambda: not processes_of(home), what="the inner daemon is gone")
    with running_daemon(home) as other:
        [stored] = other.rpc("dev.query_jobs.v1")["items"]
        assert stored["state"] == "SCHEDULED"
        assert stored["job_id"] in daemon.log(job_id)
