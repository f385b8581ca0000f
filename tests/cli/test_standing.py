"""Niceness, CPUs and limits: those of the shell that starts the daemon are not those of all jobs, but of its own."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from typing import Any

import pytest

from semtask.host import standing
from tests.cli.rig import COMMAND, LIMIT_S, Shell
from tests.daemon.rig import Daemon, RpcFailed

# What a job sees of all that a shell may set for what it starts.
SEEN = """
import ctypes, json, os, platform, resource
libc = ctypes.CDLL(None)
ioprio = {"x86_64": 252, "aarch64": 31}[platform.machine()]
print(json.dumps({
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "cpus": sorted(os.sched_getaffinity(0)),
    "policy": os.sched_getscheduler(0),
    "io": libc.syscall(ioprio, 1, 0),
    "slack": libc.prctl(30, 0, 0, 0, 0),
    "personality": libc.personality(0xFFFFFFFF),
    "oom": int(open("/proc/self/oom_score_adj").read()),
    **{name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in LIMITS},
}))
"""
LOWERED = {
    "AS": 4 << 30,
    "CPU": 1000,
    "DATA": 3 << 30,
    "FSIZE": 1 << 30,
    "NOFILE": 50,
    "STACK": 4 << 20,
    "RSS": 1 << 40,
}
SCRIPT = SEEN.replace("LIMITS", repr([*LOWERED, "CORE", "MEMLOCK", "NPROC"]))
NICE = 15
CPU = min(os.sched_getaffinity(0))


def be_odd() -> None:
    """Lower and change everything that can be changed back."""
    libc = ctypes.CDLL(None)
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    os.sched_setaffinity(0, {CPU})
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    libc.syscall({"x86_64": 251, "aarch64": 30}[os.uname().machine], 1, 0, 3 << 13)
    libc.prctl(29, 1_000_000, 0, 0, 0)
    libc.personality(0x0040000)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("500")
    for name, value in LOWERED.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def be_neutral() -> None:
    standing.become_neutral()


def run(shell: Shell, *argv: str, odd: bool) -> str:
    ran = subprocess.run(
        [*COMMAND, *argv],
        env=shell.env,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
        text=True,
        preexec_fn=be_odd if odd else be_neutral,
    )
    assert ran.returncode == 0, ran
    return ran.stdout


def niceness_that_stays() -> int:
    """0 where this user may lower a niceness."""

    def be_nice() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        standing.become_neutral()

    code = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, preexec_fn=be_nice).stdout)


def test_the_shell_that_starts_the_daemon_rules_its_own_jobs_only(shell: Shell) -> None:
    here = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        check=True,
        preexec_fn=be_neutral,
    )
    neutral: dict[str, Any] = json.loads(here.stdout)
    neutral["nice"] = niceness_that_stays()
    command = ("run", "--", sys.executable, "-c", SCRIPT)

    own = json.loads(run(shell, *command, odd=True))  # starts the daemon
    lowered = {name: own[name] for name in LOWERED}
    assert (lowered, own["nice"], own["cpus"]) == (LOWERED, NICE, [CPU])
    assert json.loads(run(shell, *command, odd=False)) == neutral
    assert neutral["policy"] == neutral["io"] == neutral["oom"] == neutral["personality"] == 0

    daemon = Daemon(shell.home)
    raw = {"command": sys.executable, "args": ["-c", SCRIPT]}
    for payload, changed in (
        (raw, {}),
        (raw | {"nice": 17}, {"nice": 17}),
        (raw | {"cpus": [CPU], "limits": {"nofile": 40}}, {"cpus": [CPU], "NOFILE": 40}),
        (raw | {"limits": {"nofile": 40, "core": 4096}}, {"NOFILE": 40, "CORE": 4096}),
        (
            raw | {"nice": 17, "sandbox": {"level": "limits", "open_files": 64}, "limits": {"nofile": 99}},
            {"nice": 17, "NOFILE": 64},
        ),
    ):
        params = {"job_type": "c", "payload": payload, "execution_mode": "SUBPROCESS"}
        job_id = daemon.rpc("dev.enqueue.v1", **params)["job_id"]
        run(shell, "wait", job_id, odd=False)
        seen = json.loads(run(shell, "logs", job_id, odd=False))
        assert {name: value for name, value in seen.items() if value != neutral[name]} == {
            name: value for name, value in changed.items() if value != neutral[name]
        }

    key = {"job_type": "c", "execution_mode": "SUBPROCESS", "idempotency_key": "key"}
    first = daemon.rpc("dev.enqueue.v1", payload={"command": "true"}, **key)
    again = daemon.rpc("dev.enqueue.v1", payload={"command": "true", "nice": 3, "cpus": [CPU], "limits": {}}, **key)
    assert (again["job_id"], again["deduplicated"]) == (first["job_id"], True)
    for wrong in ({"nice": 20}, {"nice": "1"}, {"cpus": [-1]}, {"limits": {"files": 1}}, {"limits": {"nofile": -1}}):
        with pytest.raises(RpcFailed) as refused:
            daemon.rpc(
                "dev.enqueue.v1", job_type="c", execution_mode="SUBPROCESS", payload={"command": "true", **wrong}
            )
        assert refused.value.code == 4000
    absent = {"command": "true", "cpus": [1023]}
    job_id = daemon.rpc("dev.enqueue.v1", job_type="c", execution_mode="SUBPROCESS", payload=absent)["job_id"]
    [job] = daemon.wait(job_id)
    assert job["end_cause"] == "spawn_failed"
    assert "it may run on none of the CPUs 1023 (`cpus`)" in job["error"]


def test_doctor_names_what_could_not_be_undone(shell: Shell) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (100_000, 100_000))

    assert shell("up", preexec_fn=lower).code == 0
    [found] = [one for one in shell("doctor", "--json").json["checks"] if one["name"] == "inherited"]
    if resource.prlimit(shell.daemon_pid(), resource.RLIMIT_CPU)[1] == 100_000:
        assert (found["verdict"], "cpu at most 100000" in found["text"]) == ("warn", True)
    else:  # it has the right to undo that as well
        assert found["verdict"] == "ok"
