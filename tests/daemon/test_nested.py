"""A job that uses semtask itself: it speaks to the daemon that runs it, and a daemon that it starts outlives it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, RpcFailed, alive, environ_of, eventually, processes_of, running_daemon

SEMTASK = f"{sys.executable} -m semtask"
ASK = [sys.executable, "-m", "semtask", "--home"]


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def down(home: Path) -> None:
    """End the daemon of this home, which no test has as its child."""
    import subprocess

    env = {k: v for k, v in os.environ.items() if not k.startswith("SEMANTICA_")} | {"HOME": str(home)}
    subprocess.run([*ASK, str(home), "down", "--now"], env=env, check=True, capture_output=True, timeout=60)
    eventually(lambda: not processes_of(home), what=f"the daemon of {home} is gone")


def test_a_command_finds_the_daemon_that_runs_it(daemon: Daemon, tmp_path: Path) -> None:
    """Also below a project that names another home. With a cleared environment it starts none in the default home."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "semantica.toml").write_text('home = "elsewhere"\n')
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    ways = {"plain": "", "home": f"env HOME={nobody} ", "session": "setsid -w ", "shell": "sh -c 'exec \"$@\"' sh "}
    for way, prefix in ways.items():
        script = f"{prefix}{SEMTASK} run -d --tag {way} -- true"
        [job] = daemon.wait(daemon.command("sh", "-c", script, working_dir=str(tmp_path / "project")))
        [theirs] = daemon.rpc("dev.query_jobs.v1", filter={"tag": way})["items"]
        assert theirs["job_id"] in daemon.log(job["job_id"])
    cleared = f"env -i HOME={nobody} {SEMTASK} run -d -- true"
    parents = {
        "a shell of the job": f"{cleared}; exit $?",
        "the shim": f"exec {cleared}",
        "the shim, later": f"""
            sh -c '{{ until [ -e orphaned ]; do sleep 0.05; done; {cleared}; echo $? >code; }} &'
            touch orphaned; until [ -s code ]; do sleep 0.05; done; exit $(cat code)
        """,
    }
    for parent, script in parents.items():
        [job] = daemon.wait(daemon.command("sh", "-c", script, working_dir=str(nobody)))
        assert job["exit_code"] == 3, parent
        assert f"a job of the daemon in {daemon.home} whose environment was cleared" in daemon.log(job["job_id"])
    assert list(tmp_path.rglob("meta.db")) == [daemon.home / "meta.db"]


def test_what_a_job_is_told_of_its_daemon(daemon: Daemon, tmp_path: Path) -> None:
    """Its own environment goes before; what belongs to the job is never passed on to another daemon."""
    own = daemon.command("sh", "-c", "echo $SEMANTICA_HOME $SEMANTICA_JOB_HOME")
    other = daemon.command("sh", "-c", "echo $SEMANTICA_HOME $SEMANTICA_JOB_HOME", env={"SEMANTICA_HOME": "/x"})
    daemon.wait(own, other)
    assert daemon.log(own) == f"{daemon.home} {daemon.home}\n"
    assert daemon.log(other) == f"/x {daemon.home}\n"


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


@pytest.mark.parametrize("how", ["run", "up", "variable", "client"])
def test_a_daemon_that_a_job_starts_for_another_home_outlives_it(daemon: Daemon, tmp_path: Path, how: str) -> None:
    home = tmp_path / "other"
    command, env = {
        "run": (f"{SEMTASK} --home {home} run -d -- sleep 0", {}),
        "up": (f"umask 027; {SEMTASK} --home {home} up", {}),
        "variable": (f"{SEMTASK} run -d -- true", {"SEMANTICA_HOME": str(home)}),
        "client": (
            f"{sys.executable} -c 'import asyncio, semtask; asyncio.run(semtask.Semantica().arun(\"true\"))'",
            {"SEMANTICA_HOME": str(home)},
        ),
    }[how]
    job_id = daemon.command("sh", "-c", command, env=env)
    [job] = daemon.wait(job_id)
    said = daemon.log(job_id)
    assert job["state"] == "DONE", said
    try:
        other = Daemon(home)
        pid = int(other.stats()["pid"])
        assert f"started the daemon (pid {pid}), outside of this job" in said
        assert alive(pid)
        assert ancestors(pid)[0] == daemon.pid
        assert not {name for name in environ_of(pid) if name.startswith("SEMANTICA_JOB") or name == "SEMANTICA_ATTEMPT"}
        if how == "up":
            [inner] = other.wait(other.command("sh", "-c", "umask"))
            assert other.log(inner["job_id"]) == "0027\n"
        # Neither the end of the launcher, after which the daemon ends orphans, nor its own death touches the other one.
        [launcher] = [p for p in children(daemon.pid) if p != pid]
        os.kill(launcher, signal.SIGKILL)
        [after] = daemon.wait(daemon.command("true"))
        assert after["state"] == "DONE"
        assert other.wait(other.command("true"))[0]["state"] == "DONE"
        if how == "run":
            daemon.kill()
            assert other.wait(other.command("true"))[0]["state"] == "DONE"
            daemon.start()
        assert int(other.stats()["pid"]) == pid
    finally:
        down(home)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_keeps_a_daemon_from_starting_is_told(daemon: Daemon, tmp_path: Path) -> None:
    """A bad setting; and where the daemon that runs the job is not reached."""
    bad = daemon.command("sh", "-c", f"SEMANTICA_LOG_FORMAT=nonsense {SEMTASK} --home {tmp_path}/a run -d -- true")
    env = {"SEMANTICA_HOME": str(tmp_path / "b")}
    cut = daemon.command("sh", "-c", f"SEMANTICA_JOB_HOME={tmp_path}/nowhere {SEMTASK} run -d -- true", env=env)
    same = daemon.command("sh", "-c", f"SEMANTICA_JOB_HOME={tmp_path}/b {SEMTASK} run -d -- true", env=env)
    daemon.wait(bad, cut, same)
    assert "SEMANTICA_LOG_FORMAT" in daemon.log(bad)
    assert "start it outside of the job" in daemon.log(cut)
    assert "the daemon that runs this job does not answer" in daemon.log(same)
    assert not list(tmp_path.glob("[ab]/meta.db"))


def test_a_daemon_is_started_for_its_user_only(daemon: Daemon, tmp_path: Path) -> None:
    """Not for the bearer of a token, whatever it allows."""
    script = f"{SEMTASK} --home {tmp_path}/other run -d -- true; echo $?"
    job_id = daemon.command("sh", "-c", script, access=["admin"])
    daemon.wait(job_id)
    assert "not for the bearer of a token" in daemon.log(job_id)
    assert not (tmp_path / "other" / "meta.db").exists()
    for env in ({}, {"SEMANTICA_HOME": "relative"}, {"SEMANTICA_HOME": "/x", "SEMANTICA_TCP": "perhaps"}):
        with pytest.raises(RpcFailed) as refused:
            daemon.rpc("admin.start_daemon.v1", env=env)
        assert refused.value.code == 4000
