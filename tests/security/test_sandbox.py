"""Sandboxes of commands: what each level keeps from a job, and that none ever runs with less than was asked for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semtask.host import landlock
from tests.daemon.rig import Daemon, RpcFailed, eventually, running_daemon, stop_for_certain
from tests.security import flipper, prisoner

NO_LANDLOCK = landlock.why_not()
landlocked = pytest.mark.skipif(NO_LANDLOCK is not None, reason=str(NO_LANDLOCK))
bubbled = pytest.mark.needs("bubblewrap")
CONFINED = [pytest.param("landlock", marks=landlocked), pytest.param("bwrap", marks=bubbled)]
SANDBOXES = [pytest.param("limits"), *CONFINED]
LEVELS = [pytest.param("none"), *SANDBOXES]
OTHER_USER = 54321
ROOT = str(Path(__file__).parents[2])
# Where this interpreter has its files: it is no program of the system everywhere.
PYTHON = sorted({sys.prefix, sys.base_prefix, os.path.dirname(prisoner.__file__)})


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("sandbox") / "home") as running:
        yield running


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def enqueue(daemon: Daemon, work: Path, *argv: str, sandbox: Any = None, **options: Any) -> str:
    payload = {"command": argv[0], "args": list(argv[1:]), "working_dir": str(work)}
    payload |= {name: options.pop(name) for name in ("access", "stderr") if name in options}
    if sandbox is not None:
        payload["sandbox"] = sandbox
    params = {"job_type": "c", "execution_mode": "SUBPROCESS", "payload": payload, **options}
    return str(daemon.rpc("dev.enqueue.v1", **params)["job_id"])


def ended(daemon: Daemon, job_id: str) -> dict[str, Any]:
    """The job, with its last attempt as `attempt`."""
    daemon.wait(job_id)
    job = daemon.job(job_id, "attempts")
    return {**job, "attempt": (job["attempts_list"] or [{}])[-1]}


def run(daemon: Daemon, work: Path, *argv: str, **options: Any) -> dict[str, Any]:
    return ended(daemon, enqueue(daemon, work, *argv, **options))


def python(level: str, **more: Any) -> dict[str, Any]:
    """A sandbox in which this interpreter can run."""
    return {"level": level, **({} if level in {"none", "limits"} else {"read": PYTHON}), **more}


def processes_of_job(job_id: str) -> list[int]:
    needle = f"SEMANTICA_JOB_ID={job_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if needle in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


# --- what gets through ---------------------------------------------------------------------------------------------

ALLOWED = dict.fromkeys(
    (
        "read the token",
        "read the database",
        "list the home",
        "write outside",
        "write inside",
        "own temporary file",
        "connect by TCP",
        "connect to an abstract socket",
        "signal the daemon",
        "end the daemon by a limit",
        "look into the daemon",
    ),
    "ok",
)
ALLOWED["switch the machine"] = "ok" if os.geteuid() == 0 else "EACCES"
WITH_LIMITS = {"no_new_privs": "1", "lift a limit": "ValueError", "user of a set-uid program": os.geteuid()}
TABLE: dict[str, dict[str, Any]] = {
    "none": {**ALLOWED, "no_new_privs": "0", "enqueue": 200, "user of a set-uid program": OTHER_USER},
    "limits": {**ALLOWED, **WITH_LIMITS, "enqueue": 200 if NO_LANDLOCK else 401},
    "landlock": {
        **ALLOWED,
        **WITH_LIMITS,
        "read the token": "EACCES",
        "read the database": "EACCES",
        "list the home": "EACCES",
        "write outside": "EACCES",
        "connect by TCP": "EACCES",
        "connect by MPTCP": "EACCES",
        "send by UDP": "EACCES",
        "connect to an abstract socket": "EPERM",
        "signal the daemon": "EPERM",
        "end the daemon by a limit": "EACCES",
        "switch the machine": "EACCES",
        "look into the daemon": "EACCES",
        "capabilities": 0,
        "enqueue": 401,
    },
    "bwrap": {
        **ALLOWED,
        **WITH_LIMITS,
        "read the token": "ENOENT",
        "read the database": "ENOENT",
        "list the home": "ENOENT",
        "write outside": "ENOENT",
        "connect by TCP": "ECONNREFUSED",  # a loopback of its own
        "connect to an abstract socket": "ECONNREFUSED",
        "signal the daemon": "ESRCH",
        "end the daemon by a limit": "ESRCH",
        "switch the machine": "EROFS" if os.geteuid() == 0 else "EACCES",
        "look into the daemon": "ENOENT",
        "capabilities": 0,
        "enqueue": "ENOENT",
    },
}


@pytest.fixture
def listening() -> Iterator[dict[str, Any]]:
    """A port and an abstract socket of ours."""
    name = f"semtask-test-{os.getpid()}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen(50)
        abstract.bind(f"\0{name}")
        abstract.listen(50)
        yield {"port": tcp.getsockname()[1], "abstract": name}


def escape(
    daemon: Daemon, work: Path, level: str, listening: dict[str, Any], sandbox: Any, **options: Any
) -> dict[str, Any]:
    """What came of each attempt of a job with this sandbox."""
    (daemon.home / "run" / "token").touch(mode=0o600)
    outside = work.parent / "outside"
    outside.mkdir(exist_ok=True)
    given = {"home": str(daemon.home), "daemon": daemon.pid, "outside": str(outside), "level": level, **listening}
    if os.geteuid() == 0:
        shutil.copy("/usr/bin/id", work / "set-uid")
        os.chown(work / "set-uid", OTHER_USER, -1)
        os.chmod(work / "set-uid", 0o4755)
    job = run(
        daemon, work, sys.executable, "-I", "-S", prisoner.__file__, json.dumps(given), sandbox=sandbox, **options
    )
    assert job["state"] == "DONE", (job, daemon.log(job["job_id"]))
    came: dict[str, Any] = json.loads(daemon.log(job["job_id"]).splitlines()[-1])
    assert (outside / f"by-{level}").exists() is (came["write outside"] == "ok")
    return came


@pytest.mark.parametrize("level", LEVELS)
def test_what_gets_through(daemon: Daemon, work: Path, listening: dict[str, Any], level: str) -> None:
    before = daemon.stats()["total_jobs"]
    came = escape(daemon, work, level, listening, python(level))
    expected = TABLE[level]
    if os.geteuid() != 0:
        expected = {name: what for name, what in expected.items() if name != "user of a set-uid program"}
    assert {name: came[name] for name in expected} == expected
    assert daemon.stats()["total_jobs"] == before + 1 + (expected["enqueue"] == 200)
    assert (work / "by-me").read_text() == "here I was"


@pytest.mark.parametrize("level", CONFINED)
def test_the_network_is_there_if_it_is_asked_for(
    daemon: Daemon, work: Path, listening: dict[str, Any], level: str
) -> None:
    came = escape(daemon, work, level, listening, python(level, network=True))
    assert came["connect by TCP"] == "ok"
    assert came["read the token"] != "ok"
    assert came["signal the daemon"] != "ok"
    assert came["end the daemon by a limit"] != "ok"


@pytest.mark.parametrize("level", CONFINED)
def test_what_may_be_read_and_written(daemon: Daemon, work: Path, level: str) -> None:
    read, write = work.parent / "read", work.parent / "write"
    for folder in (read, write):
        folder.mkdir()
        (folder / "there").write_text(f"in {folder.name}\n")
    script = f"for d in {read} {write}; do cat $d/there; echo y > $d/new; mv $d/new $d/moved; done"
    job = run(daemon, work, "sh", "-c", script, sandbox={"level": level, "read": [str(read)], "write": [str(write)]})
    assert "in read\n" in daemon.log(job["job_id"])
    assert "in write\n" in daemon.log(job["job_id"])
    assert os.listdir(read) == ["there"]
    assert (write / "moved").read_text() == "y\n"
    alone = run(daemon, work, "cat", str(read / "there"), sandbox=level)
    assert alone["exit_code"] == 1


@pytest.mark.parametrize("level", SANDBOXES)
@pytest.mark.parametrize(
    ("limit", "code", "ends"),
    [
        ({"memory_mb": 100}, "bytearray(300 << 20)", {"exit_code": 1}),
        ({"cpu_seconds": 1}, "while True: pass", {"signal": signal.SIGXCPU}),
        ({"open_files": 20}, "[open('/dev/null') for _ in range(30)]", {"exit_code": 1}),
        ({"file_mb": 1}, "open('big', 'wb').write(bytes(2 << 20))", {"exit_code": 1}),  # Python ignores SIGXFSZ
    ],
)
def test_limits(daemon: Daemon, work: Path, level: str, limit: dict[str, int], code: str, ends: dict[str, int]) -> None:
    job = run(daemon, work, sys.executable, "-I", "-S", "-c", code, sandbox=python(level, **limit))
    if level == "bwrap" and "signal" in ends:
        ends = {"exit_code": 128 + ends["signal"]}
    assert {name: job[name] for name in ends} == ends, daemon.log(job["job_id"])
    free = run(daemon, work, sys.executable, "-I", "-S", "-c", "bytearray(300 << 20)", sandbox=python(level))
    assert free["state"] == "DONE", daemon.log(free["job_id"])


# --- as without ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_ends_and_output_are_those_of_the_command(daemon: Daemon, work: Path, level: str) -> None:
    job = run(daemon, work, "sh", "-c", "echo out; echo err >&2; exit 42", sandbox=level, stderr="split")
    assert (job["state"], job["end_cause"], job["exit_code"]) == ("FAILED", "exit_code", 42)
    assert job["attempt"].get("sandbox") == (None if level == "none" else level)
    tail = {s: daemon.rpc("logs.tail.v1", job_id=job["job_id"], offset=0, stream=s) for s in ("stdout", "stderr")}
    assert {stream: said["chunk"] for stream, said in tail.items()} == {"stdout": "out\n", "stderr": "err\n"}
    again = run(daemon, work, "sh", "-c", "echo 1; echo 2 > /dev/stderr; echo 3 | tee /dev/stdout", sandbox=level)
    assert (again["exit_code"], daemon.log(again["job_id"])) == (0, "1\n2\n3\n3\n")
    killed = run(daemon, work, "sh", "-c", "kill -9 $$", sandbox=level)
    if level == "bwrap":  # which tells it as a shell does
        assert (killed["end_cause"], killed["exit_code"]) == ("exit_code", 128 + 9)
    else:
        assert (killed["end_cause"], killed["signal"]) == ("signal", 9)


@pytest.mark.parametrize("level", CONFINED)
def test_the_grace_is_for_the_whole_tree(daemon: Daemon, work: Path, level: str) -> None:
    """Not only for the command, whose own end is reported; and when it is over, nothing is left."""
    (work / "clean.sh").write_text(
        "trap 'echo asked; sleep 0.4; echo cleaned; exit' TERM; sh -c 'echo up; exec sleep 300' & wait"
    )
    script = "trap 'exit 7' TERM; sh clean.sh & wait"
    job_id = enqueue(daemon, work, "sh", "-c", script, sandbox=level, grace_ms=60_000)
    eventually(lambda: "up" in daemon.log(job_id))
    daemon.rpc("dev.cancel.v1", job_id=job_id)
    job = ended(daemon, job_id)
    assert (job["state"], job["exit_code"]) == ("CANCELLED", 7)
    assert daemon.log(job_id) == "up\nasked\ncleaned\n"

    stubborn = """trap "echo bye; exit 7" TERM; sh -c "trap '' TERM; echo up; while :; do sleep 0.1; done" & wait"""
    job_id = enqueue(daemon, work, "sh", "-c", stubborn, sandbox=level, grace_ms=60_000)
    eventually(lambda: "up" in daemon.log(job_id))
    daemon.rpc("dev.cancel.v1", job_id=job_id)
    eventually(lambda: "bye" in daemon.log(job_id))
    assert daemon.job(job_id)["state"] == "RUNNING"
    daemon.rpc("dev.cancel.v1", job_id=job_id, grace_ms=0)
    job = ended(daemon, job_id)
    assert (job["state"], job["exit_code"]) == ("CANCELLED", 7)
    assert processes_of_job(job_id) == []


@pytest.mark.parametrize("level", LEVELS)
def test_a_cancel_asks_first_and_then_ends_the_whole_tree(daemon: Daemon, work: Path, level: str) -> None:
    polite = 'trap "echo asked > asked; exit 0" TERM; echo ready > ready; while :; do sleep 0.05; done'
    job_id = enqueue(daemon, work, "sh", "-c", polite, sandbox=level)
    eventually((work / "ready").exists)
    daemon.rpc("dev.cancel.v1", job_id=job_id)
    assert ended(daemon, job_id)["state"] == "CANCELLED"
    assert (work / "asked").exists()
    stubborn = 'trap "" TERM; setsid sh -c \'trap "" TERM; echo > born; exec sleep 600\' & exec sleep 600'
    job_id = enqueue(daemon, work, "sh", "-c", stubborn, sandbox=level, grace_ms=100)
    eventually((work / "born").exists)
    assert len(processes_of_job(job_id)) >= 2
    daemon.rpc("dev.cancel.v1", job_id=job_id)
    assert ended(daemon, job_id)["state"] == "CANCELLED"
    assert processes_of_job(job_id) == []


@pytest.mark.parametrize("level", SANDBOXES)
def test_a_timeout_and_a_child_that_is_left(daemon: Daemon, work: Path, level: str) -> None:
    job = run(
        daemon, work, "sh", "-c", "setsid sleep 600 & exec sleep 600", sandbox=level, timeout_ms=500, grace_ms=100
    )
    assert (job["state"], job["end_cause"]) == ("FAILED", "timeout")
    assert processes_of_job(job["job_id"]) == []
    left = run(daemon, work, "sh", "-c", "setsid sleep 600 > /dev/null 2>&1 & exit 0", sandbox=level)
    assert left["state"] == "DONE"
    assert processes_of_job(left["job_id"]) == []


@pytest.mark.parametrize("level", SANDBOXES)
def test_a_tree_is_gone_after_the_daemon_is_killed(tmp_path: Path, work: Path, level: str) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        job_id = enqueue(daemon, work, "sh", "-c", "setsid sleep 600 & echo > born; exec sleep 600", sandbox=level)
        eventually((work / "born").exists)
        daemon.kill()
        eventually(lambda: not processes_of_job(job_id), what="the sandbox ended with the daemon")
        daemon.start()
        job = ended(daemon, job_id)
        assert (job["state"], job["end_cause"]) == ("FAILED", "interrupted")
        assert job["attempt"]["sandbox"] == level


@landlocked
def test_temporary_files_go_with_the_attempt(daemon: Daemon, work: Path) -> None:
    deep = 'cd "$TMPDIR"; for n in $(seq 300); do mkdir a && cd a; done; touch file; ln -s / root; chmod 0 .'
    script = f'echo "$TMPDIR" > "$PWD/where"; ({deep}); mkdir "$TMPDIR/closed"; chmod 0 "$TMPDIR/closed"'
    job = run(daemon, work, "sh", "-c", script, sandbox="landlock")
    assert job["state"] == "DONE", daemon.log(job["job_id"])
    where = Path((work / "where").read_text().strip())
    assert where.is_relative_to(daemon.home / "attempts")
    eventually(lambda: not where.parent.exists(), what="the folder of the attempt is removed")
    assert Path("/usr").exists()


@pytest.mark.parametrize("level", CONFINED)
def test_a_sandboxed_job_starts_no_daemon_that_would_end_with_it(daemon: Daemon, work: Path, level: str) -> None:
    """Even if its environment was cleared: the work that it enqueues there would be lost."""
    read = [*PYTHON, str(Path(landlock.__file__).parents[2])]
    for where in (f"HOME={work}", f"SEMANTICA_HOME={work}/other"):
        ask = [sys.executable, "-m", "semtask", "run", "-d", "--", "true"]
        job = run(daemon, work, "env", "-i", where, *ask, sandbox={"level": level, "read": read})
        assert job["exit_code"] in {3, 6}, daemon.log(job["job_id"])
        assert str(daemon.home) in daemon.log(job["job_id"]) or "You run in a sandbox" in daemon.log(job["job_id"])
        assert not list(work.rglob("meta.db"))


# --- what cannot be started ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_why_a_program_was_not_started(daemon: Daemon, work: Path, level: str) -> None:
    (work / "no-x").write_text("#!/bin/sh\n")
    (work / "no-interpreter").write_text("#!/no/such\n")
    (work / "no-interpreter").chmod(0o755)
    plain = {}
    for name in ("no-such-program", "./no-x", str(work), "./no-interpreter"):
        job = run(daemon, work, name, sandbox=level)
        assert (job["state"], job["end_cause"]) == ("FAILED", "spawn_failed"), (name, job)
        plain[name] = job["error"]
    assert "there is no program 'no-such-program' in PATH=" in plain["no-such-program"]
    assert "needs its x bit" in plain["./no-x"]
    assert "is a folder, not a program" in plain[str(work)]
    if level == "bwrap":
        assert "bubblewrap could not start it: execvp" in plain["./no-interpreter"]
    else:
        assert "the interpreter that its first line" in plain["./no-interpreter"]


@pytest.mark.parametrize("level", CONFINED)
def test_a_program_elsewhere_needs_read(daemon: Daemon, work: Path, level: str) -> None:
    tool = work.parent / "elsewhere" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho used\n")
    tool.chmod(0o755)
    job = run(daemon, work, str(tool), sandbox=level)
    assert (job["end_cause"], "outside of what the sandbox may read" in job["error"]) == ("spawn_failed", True), job
    job = run(daemon, work, str(tool), sandbox={"level": level, "read": [str(tool.parent)]})
    assert daemon.log(job["job_id"]) == "used\n"


@pytest.mark.parametrize("level", CONFINED)
@pytest.mark.parametrize("way", ["the home", "above it", "inside it", "by a link", "as the working directory"])
def test_no_sandbox_opens_the_home(daemon: Daemon, work: Path, level: str, way: str) -> None:
    link = work.parent / "link"
    link.symlink_to(daemon.home)
    places = {
        "the home": daemon.home,
        "above it": daemon.home.parent,
        "inside it": daemon.home / "run",
        "by a link": link / "run",
        "as the working directory": daemon.home / "logs",
    }
    place = str(places[way])
    if way == "as the working directory":
        jobs = [run(daemon, places[way], "true", sandbox=level)]
    else:
        jobs = [
            run(daemon, work, "touch", "ran", sandbox={"level": level, name: [place]}) for name in ("read", "write")
        ]
    for job in jobs:
        assert (job["state"], job["end_cause"]) == ("FAILED", "spawn_failed")
        assert f"{place!r}: no job may reach what is in '{daemon.home}'" in job["error"]
    assert not (work / "ran").exists()


@pytest.mark.parametrize("level", CONFINED)
def test_no_sandbox_opens_the_files_of_other_processes(daemon: Daemon, work: Path, level: str) -> None:
    for place in ("/proc", f"/proc/{daemon.pid}/root", "/proc/sys/kernel"):
        job = run(daemon, work, "touch", "ran", sandbox={"level": level, "write": [place]})
        assert job["end_cause"] == "spawn_failed", job
    assert not (work / "ran").exists()


@pytest.mark.parametrize("level", CONFINED)
def test_no_sandbox_opens_what_takes_the_place_of_a_folder(daemon: Daemon, work: Path, level: str) -> None:
    """Between the look at a folder and its use somebody exchanges it for a link to the home, again and again."""
    place, link = work.parent / "place", work.parent / "link"
    place.mkdir()
    link.symlink_to(daemon.home)
    with subprocess.Popen([sys.executable, "-I", "-S", flipper.__file__, str(place), str(link)]) as flips:
        try:
            sandbox = {"level": level, "write": [str(place)]}
            jobs = [enqueue(daemon, work, "ls", str(place), sandbox=sandbox) for _ in range(60)]
            ends = {job_id: ended(daemon, job_id) for job_id in jobs}
        finally:
            flips.kill()
    assert {job["state"] for job in ends.values()} == {"DONE", "FAILED"}
    assert not [job_id for job_id in jobs if "meta.db" in daemon.log(job_id)]


@landlocked
def test_no_sandbox_beside_a_port_that_lets_everybody_in(tmp_path: Path, work: Path) -> None:
    settings = {"SEMANTICA_TCP": "on", "SEMANTICA_RPC_PORT": "0", "SEMANTICA_TCP_AUTH": "off"}
    with running_daemon(tmp_path / "home", **settings) as daemon:
        job = run(daemon, work, "touch", "ran", sandbox="landlock")
        assert (job["end_cause"], "SEMANTICA_TCP_AUTH=off" in job["error"]) == ("spawn_failed", True), job
        assert not (work / "ran").exists()


@pytest.mark.parametrize("level", CONFINED)
def test_a_path_that_is_not_there(daemon: Daemon, work: Path, level: str) -> None:
    job = run(daemon, work, "touch", "ran", sandbox={"level": level, "write": ["/no/such/folder"]})
    assert job["error"] == "`write` of the sandbox, '/no/such/folder': No such file or directory"
    assert not (work / "ran").exists()


def test_a_level_that_cannot_be_had_fails_the_job_and_nothing_runs(tmp_path: Path, work: Path) -> None:
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    told = {
        "landlock": "the sandbox level landlock is not available here: this kernel has version 5 of Landlock",
        "bwrap": "the sandbox level bwrap is not available here: there is no program bwrap in /usr/bin",
        "refused": "bubblewrap could not start it: No permissions to create a new namespace",
    }

    class WithoutSandboxes(Daemon):
        entry = ("tests.security.without_sandboxes", "daemon")

    def check(daemon: Daemon, level: str, why: str) -> None:
        queue = f"only-{level}"
        daemon.rpc("queues.configure.v1", queue=queue, sandbox=level)
        for options in ({"sandbox": level}, {"queue": queue}, {"queue": queue, "sandbox": "limits"}):
            job = run(daemon, work, "touch", "ran", max_attempts=3, **options)
            assert (job["state"], job["end_cause"], job["attempts"]) == ("FAILED", "spawn_failed", 1), job
            assert why in job["error"]
            assert job["attempt"]["sandbox"] == level
        assert not (work / "ran").exists()

    for name, env in (("landlock", {}), ("bwrap", {}), ("refused", {"TEST_BWRAP": str(fake)})):
        daemon = WithoutSandboxes(tmp_path / name, PYTHONPATH=ROOT, **env)
        try:
            check(daemon.start(), "bwrap" if name == "refused" else name, told[name])
        finally:
            stop_for_certain(daemon)


# --- floors ----------------------------------------------------------------------------------------------------------


@landlocked
def test_the_floor_of_a_queue_wins_over_a_weaker_job(daemon: Daemon, work: Path, listening: dict[str, Any]) -> None:
    answer = daemon.rpc("queues.configure.v1", queue="floored", sandbox="landlock")
    assert answer["sandbox"] == "landlock"
    for sandbox in (None, "none", "limits"):
        job = run(daemon, work, "cat", str(daemon.home / "meta.db"), sandbox=sandbox, queue="floored")
        assert (job["exit_code"], job["attempt"]["sandbox"]) == (1, "landlock"), job
        assert "Permission denied" in daemon.log(job["job_id"])
    assert daemon.rpc("queues.configure.v1", queue="floored", concurrency=3)["sandbox"] == "landlock"
    listed = {queue["name"]: queue["sandbox"] for queue in daemon.rpc("queues.list.v1")["queues"]}
    assert (listed["floored"], listed["default"]) == ("landlock", "none")
    came = escape(daemon, work, "limits", listening, python("landlock"), queue="floored")
    assert came["connect by TCP"] == "EACCES"
    daemon.rpc("queues.configure.v1", queue="floored", sandbox="none")
    assert run(daemon, work, "cat", str(daemon.home / "meta.db"), queue="floored")["state"] == "DONE"


@bubbled
def test_a_stronger_job_wins_over_the_floor(daemon: Daemon, work: Path) -> None:
    daemon.rpc("queues.configure.v1", queue="limited", sandbox="limits")
    assert run(daemon, work, "true", queue="limited")["attempt"]["sandbox"] == "limits"
    assert run(daemon, work, "true", queue="limited", sandbox="bwrap")["attempt"]["sandbox"] == "bwrap"


@landlocked
def test_the_floor_of_the_settings_survives_and_holds_for_every_queue(tmp_path: Path, work: Path) -> None:
    with running_daemon(tmp_path / "home", SEMANTICA_SANDBOX="landlock") as daemon:
        daemon.rpc("queues.configure.v1", queue="weaker", sandbox="limits")
        for queue in ("default", "weaker", "new"):
            job = run(daemon, work, "cat", str(daemon.home / "meta.db"), queue=queue)
            assert (job["exit_code"], job["attempt"]["sandbox"]) == (1, "landlock"), job
        with pytest.raises(RpcFailed, match=r"every queue .* runs nothing without a sandbox"):
            daemon.rpc("dev.enqueue.v1", job_type="t", execution_mode="IN_PROCESS", payload={})


def test_a_floor_survives_a_restart(tmp_path: Path, work: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        daemon.rpc("queues.configure.v1", queue="q", sandbox="limits")
        daemon.terminate()
        daemon.start()
        job = run(daemon, work, "grep", "NoNewPrivs", "/proc/self/status", queue="q")
        assert (daemon.log(job["job_id"]).split()[-1], job["attempt"]["sandbox"]) == ("1", "limits")


def test_tasks_are_not_run_in_a_queue_with_a_floor(tmp_path: Path) -> None:
    (tmp_path / "app_of_test.py").write_text(
        "from pathlib import Path\nfrom semtask import Semantica\napp = Semantica()\n"
        f"@app.task(name='t')\ndef t() -> None:\n    Path({str(tmp_path / 'ran')!r}).touch()\n"
    )
    config = tmp_path / "home" / ".config" / "semtask" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[apps.a]\nmodule = "app_of_test:app"\ndirectory = "{tmp_path}"\n')
    task = {"job_type": "t", "execution_mode": "IN_PROCESS", "payload": {}, "queue": "q"}
    with running_daemon(tmp_path / "home") as daemon:
        eventually(lambda: daemon.rpc("tasks.list.v1")["tasks"], what="the app is imported")
        daemon.rpc("queues.pause.v1", queue="q")
        early = daemon.rpc("dev.enqueue.v1", **task)["job_id"]
        daemon.rpc("queues.configure.v1", queue="q", sandbox="limits")
        with pytest.raises(RpcFailed, match="queue 'q' runs nothing without a sandbox") as refused:
            daemon.rpc("dev.enqueue.v1", **task)
        assert (refused.value.code, refused.value.data["details"]) == (4000, {"parameter": "queue"})
        with pytest.raises(RpcFailed) as refused:
            daemon.rpc("dev.enqueue_many.v1", jobs=[{**task, "queue": "free"}, task])
        assert refused.value.data["details"] == {"parameter": "jobs[1].queue"}
        daemon.rpc("queues.resume.v1", queue="q")
        job = ended(daemon, early)
        assert (job["state"], job["end_cause"], job["attempts"]) == ("FAILED", "spawn_failed", 1)
        assert "a task has none" in job["error"]
        with pytest.raises(RpcFailed, match="runs nothing without a sandbox"):
            daemon.rpc("dev.retry.v1", job_id=early)
        assert not (tmp_path / "ran").exists()
        daemon.rpc("queues.configure.v1", queue="q", sandbox="none")
        daemon.wait(daemon.rpc("dev.enqueue.v1", **task)["job_id"])
        assert (tmp_path / "ran").exists()


# --- what may be asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sandbox", "place"),
    [
        ("jail", "payload.sandbox"),
        ({"level": "limits", "read": ["/srv"]}, "payload.sandbox.read"),
        ({"level": "none", "write": ["/srv"]}, "payload.sandbox.write"),
        ({"level": "limits", "network": True}, "payload.sandbox.network"),
        ({"level": "none", "memory_mb": 100}, "payload.sandbox.memory_mb"),
        ({"level": "landlock", "read": ["relative"]}, "payload.sandbox.read[0]"),
        ({"level": "landlock", "write": ["/with\0nul"]}, "payload.sandbox.write[0]"),
        ({"level": "landlock", "memory_mb": 1}, "payload.sandbox.memory_mb"),
        ({"level": "landlock", "memory": 100}, "payload.sandbox"),
        ({"read": ["/srv"]}, "payload.sandbox"),
        (None, "payload.sandbox"),
    ],
)
def test_what_is_refused(daemon: Daemon, work: Path, sandbox: Any, place: str) -> None:
    payload = {"command": "true", "working_dir": str(work), "sandbox": sandbox}
    with pytest.raises(RpcFailed) as refused:
        daemon.rpc("dev.enqueue.v1", job_type="c", execution_mode="SUBPROCESS", payload=payload)
    assert refused.value.code == 4000
    assert refused.value.data["details"]["parameter"].startswith(place), refused.value.message


def test_a_key_stands_for_the_sandbox_too(daemon: Daemon, work: Path) -> None:
    first = enqueue(daemon, work, "true", sandbox="limits", idempotency_key="with limits")
    for same in ("limits", {"level": "limits"}):
        assert enqueue(daemon, work, "true", sandbox=same, idempotency_key="with limits") == first
    for other in (None, "landlock", {"level": "limits", "open_files": 99}):
        with pytest.raises(RpcFailed) as refused:
            enqueue(daemon, work, "true", sandbox=other, idempotency_key="with limits")
        assert refused.value.code == 4002
    plain = enqueue(daemon, work, "true", idempotency_key="plain")
    assert enqueue(daemon, work, "true", sandbox="none", idempotency_key="plain") == plain
    daemon.wait(first, plain)


@landlocked
def test_a_retry_keeps_its_sandbox(daemon: Daemon, work: Path) -> None:
    job = run(daemon, work, "false", sandbox="landlock", max_attempts=2, retry_base_delay_ms=1)
    assert [attempt["sandbox"] for attempt in job["attempts_list"]] == ["landlock", "landlock"]
    copy = daemon.rpc("dev.retry.v1", job_id=job["job_id"])["job_id"]
    assert ended(daemon, copy)["attempt"]["sandbox"] == "landlock"


@landlocked
def test_a_token_for_commands_does_not_go_with_a_sandbox(daemon: Daemon, work: Path) -> None:
    """It would open the sandbox: with it a job may ask for one that has none."""
    for scope in ("command", "admin"):
        with pytest.raises(RpcFailed, match="could have commands run without a sandbox") as refused:
            enqueue(daemon, work, "true", sandbox="landlock", access=[scope])
        assert refused.value.code == 4000
    daemon.rpc("queues.configure.v1", queue="no-tokens", sandbox="landlock")
    job = run(daemon, work, "touch", "ran", queue="no-tokens", access=["command"])
    assert (job["end_cause"], (work / "ran").exists()) == ("spawn_failed", False)
    assert run(daemon, work, "true", queue="no-tokens", access=["read"])["state"] == "DONE"


# --- who asks from inside of a sandbox -------------------------------------------------------------------------------


def in_sandbox(daemon: Daemon, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line, called by somebody with no_new_privs."""
    return subprocess.run(
        [sys.executable, "-m", "tests.security.confined", *argv],
        env={**daemon.env, "PYTHONPATH": ROOT, **env},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def semtask(daemon: Daemon, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "semtask", *argv],
        env=daemon.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@landlocked
def test_whoever_is_in_a_sandbox_needs_a_token(daemon: Daemon) -> None:
    said = in_sandbox(daemon, "ls")
    assert said.returncode == 6
    assert "You run in a sandbox (with no_new_privs)" in said.stderr
    assert "SEMANTICA_TOKEN" in said.stderr
    token = semtask(daemon, "token", "add", "for-the-agent", "--scope", "read").stdout.strip()
    assert in_sandbox(daemon, "ls", SEMANTICA_TOKEN=token).returncode == 0
    assert in_sandbox(daemon, "ls", SEMANTICA_TOKEN="no such token").returncode == 6
    assert semtask(daemon, "ls").returncode == 0


@landlocked
def test_a_caller_that_is_gone_is_taken_for_one_in_a_sandbox(daemon: Daemon) -> None:
    """Its pid can be anybody's by the time that it is looked at."""
    before = daemon.stats()["total_jobs"]
    code = (
        "import os, sys, threading, time\nfrom tests.security import prisoner\n"
        "threading.Thread(target=prisoner.enqueue, args=[sys.argv[1]], daemon=True).start(); time.sleep(1); os._exit(0)"
    )
    words = [sys.executable, "-c", code, str(daemon.home / "run" / "rpc.sock")]
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        caller = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": ROOT}, cwd="/")
        # All its threads, not only the first one. As a zombie it still has its pid.
        os.waitid(os.P_PID, caller.pid, os.WEXITED | os.WNOWAIT)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:  # it would be there at once
            assert daemon.stats()["total_jobs"] == before
    finally:
        assert caller.wait() == 0


@landlocked
def test_a_daemon_in_a_sandbox_cannot_keep_jobs_in_one(tmp_path: Path, work: Path) -> None:
    class Confined(Daemon):
        entry = ("tests.security.confined", "daemon")

    daemon = Confined(tmp_path / "home", PYTHONPATH=ROOT)
    try:
        daemon.start()
        assert in_sandbox(daemon, "ls").returncode == 0
        job = run(daemon, work, "touch", "ran", sandbox="landlock")
        assert (job["end_cause"], (work / "ran").exists()) == ("spawn_failed", False)
        assert "the daemon itself runs with no_new_privs" in job["error"]
        assert "landlock is not available" in semtask(daemon, "doctor").stdout
        assert run(daemon, work, "true", sandbox="limits")["state"] == "DONE"
    finally:
        stop_for_certain(daemon)


def test_the_service_has_no_sandbox_of_its_own(daemon: Daemon) -> None:
    unit = semtask(daemon, "install-service", "--print").stdout
    assert "ExecStart=" in unit
    assert not any(
        line.startswith(("NoNewPrivileges=", "Protect", "Private", "Restrict")) for line in unit.splitlines()
    )


# --- for people ------------------------------------------------------------------------------------------------------


@landlocked
def test_the_command_line(daemon: Daemon, work: Path) -> None:
    (work.parent / "data").mkdir()
    words = ["--sandbox", "landlock", "--sandbox-write", "../data", "--sandbox-limit", "open_files=64"]
    script = "ulimit -n; echo x > ../data/new; echo y > ../other"
    said = semtask(daemon, "run", *words, "--", "sh", "-c", script, cwd=work)
    assert (said.returncode, said.stdout) == (2, "64\n"), said
    assert (work.parent / "data" / "new").exists()
    assert not (work.parent / "other").exists()
    assert ", sandbox landlock" in semtask(daemon, "show", "last").stdout
    assert semtask(daemon, "run", "--sandbox-write", "/srv", "true").returncode == 2
    told = semtask(daemon, "queues", "set", "of-cli", "--sandbox", "limits")
    assert "no command without the sandbox limits" in told.stderr
    assert "of-cli\t0\t0\t0\t0\t0" in semtask(daemon, "queues").stdout
    assert semtask(daemon, "queues").stdout.count("\tlimits\n") >= 1
    found = [line for line in semtask(daemon, "doctor").stdout.splitlines() if " sandbox " in line]
    assert [line.split()[2] for line in found] == ["limits", "landlock", "bwrap"]
    assert "landlock is available" in found[1]
