"""A command from enqueue to its end, through the socket of a real daemon."""

from __future__ import annotations

import base64
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.rig import Daemon, RpcFailed, alive, command_params, eventually, running_daemon, stop_for_certain


def test_a_command_runs_and_keeps_its_output_exit_code_and_times(daemon: Daemon) -> None:
    job_id = daemon.command("sh", "-c", "echo out; echo err >&2; exit 7")
    [job] = daemon.wait(job_id)
    assert (job["state"], job["end_cause"], job["exit_code"]) == ("FAILED", "exit_code", 7)
    assert daemon.log(job_id) == "out\nerr\n"
    assert Path(job["log_path"]).read_text() == "out\nerr\n"
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    [attempt] = daemon.job(job_id, "attempts")["attempts_list"]
    assert (attempt["claim_no"], attempt["exit_code"], attempt["end_cause"]) == (1, 7, "exit_code")
    assert (job["attempts"], job["failures"]) == (1, 1)


def test_streams_are_kept_apart_when_asked(daemon: Daemon) -> None:
    job_id = daemon.command("sh", "-c", "echo out; echo err >&2", stderr="split")
    daemon.wait(job_id)
    assert daemon.log(job_id) == "out\n"
    assert daemon.rpc("logs.tail.v1", job_id=job_id, offset=0, stream="stderr")["chunk"] == "err\n"


def test_the_attempt_folder_goes_after_the_finish(daemon: Daemon) -> None:
    job_id = daemon.command("true")
    daemon.wait(job_id)
    folder = daemon.home / "attempts" / f"{job_id}.1"
    eventually(lambda: not folder.exists(), what="the attempt folder is removed")


def test_a_timeout_gives_the_grace_to_a_child_of_the_command_too(daemon: Daemon) -> None:
    """Its parent, a shell, is gone with the SIGTERM."""
    child = "trap 'sleep 0.5; echo cleaned; exit' TERM; sh -c 'echo up; exec sleep 300' & wait"
    job_id = daemon.command("sh", "-c", 'sh -c "$CHILD"; echo next', env={"CHILD": child}, timeout_ms=2000)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["end_cause"]) == ("FAILED", "timeout")
    assert daemon.log(job_id) == "up\ncleaned\n"


@pytest.mark.parametrize(
    ("argv", "options", "says"),
    [
        (["no-such-program-anywhere"], {}, "no-such-program-anywhere"),
        (["/etc/passwd"], {}, "/etc/passwd"),
        (["true"], {"working_dir": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_what_cannot_be_started_fails_at_once_and_says_why(
    daemon: Daemon, argv: list[str], options: dict[str, Any], says: str
) -> None:
    [job] = daemon.wait(daemon.command(*argv, **options))
    assert (job["state"], job["end_cause"]) == ("FAILED", "spawn_failed")
    assert says in job["error"]


def test_a_death_by_signal_is_told(daemon: Daemon) -> None:
    [job] = daemon.wait(daemon.command("sh", "-c", "kill -SEGV $$"))
    assert (job["state"], job["end_cause"], job["signal"]) == ("FAILED", "signal", signal.SIGSEGV)


def test_two_callers_with_their_own_environment_folder_and_umask(daemon: Daemon, tmp_path: Path) -> None:
    script = 'pwd; umask; echo "$PATH|$WHO"; touch made-$WHO'
    folders = [tmp_path / "one", tmp_path / "two"]
    ids = []
    for folder, umask in zip(folders, (0o022, 0o077), strict=True):
        folder.mkdir()
        env = {"PATH": f"{os.environ['PATH']}:/{folder.name}", "WHO": folder.name}
        ids.append(daemon.command("sh", "-c", script, env=env, working_dir=str(folder), umask=umask))
    daemon.wait(*ids)
    for folder, job_id, shown, mode in zip(folders, ids, ("0022", "0077"), (0o644, 0o600), strict=True):
        path = f"{os.environ['PATH']}:/{folder.name}"
        assert daemon.log(job_id) == f"{folder}\n{shown}\n{path}|{folder.name}\n"
        assert (folder / f"made-{folder.name}").stat().st_mode & 0o777 == mode


def test_the_environment_is_the_allowlist_the_jobs_own_and_nothing_else(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home", SECRET_OF_THE_DAEMON="x", LC_TIME="C") as daemon:
        job_id = daemon.command("env", "-0", env={"MINE": "1 2\n3"})
        daemon.wait(job_id)
        names = {line.split("=", 1)[0] for line in daemon.log(job_id).split("\0") if line}
        assert {"MINE", "PATH", "HOME", "LC_TIME", "SEMANTICA_JOB_ID", "SEMANTICA_ATTEMPT"} <= names
        assert {"SEMANTICA_HOME", "SEMANTICA_JOB_HOME"} <= names  # it may speak to the daemon that runs it
        known = ("SEMANTICA_JOB_", "SEMANTICA_ATTEMPT", "SEMANTICA_HOME")
        assert not {n for n in names if n.startswith("SEMANTICA_") and not n.startswith(known)}
        assert not {n for n in names if n.startswith(("SECRET", "PYTHON", "PYTEST"))}


def test_a_megabyte_of_arguments(daemon: Daemon) -> None:
    args = ["x" * 1000] * 1000
    job_id = daemon.command("sh", "-c", 'printf %s "$*" | wc -c; echo $#', "sh", *args)
    [job] = daemon.wait(job_id)
    assert job["state"] == "DONE"
    assert daemon.log(job_id).split() == [str(1000 * 1000 + 999), "1000"]


def test_arguments_over_the_limit_of_linux_are_refused_for_good(daemon: Daemon) -> None:
    [job] = daemon.wait(daemon.command("true", "x" * 200_000))
    assert (job["state"], job["end_cause"]) == ("FAILED", "spawn_failed")
    assert "too long" in job["error"].lower()


def test_highest_priority_first_then_first_come(daemon: Daemon, tmp_path: Path) -> None:
    daemon.rpc("queues.configure.v1", queue="one", concurrency=1)
    daemon.rpc("queues.pause.v1", queue="one")
    order = tmp_path / "order"
    ids = [
        daemon.command("sh", "-c", f"echo {n} >> {order}", queue="one", priority=priority)
        for n, priority in enumerate([0, -5, 9, 0, 9])
    ]
    daemon.rpc("queues.resume.v1", queue="one")
    daemon.wait(*ids)
    assert order.read_text().split() == ["2", "4", "0", "3", "1"]


def test_a_queue_runs_as_many_jobs_as_it_may(daemon: Daemon, tmp_path: Path) -> None:
    daemon.rpc("queues.configure.v1", queue="two", concurrency=2)
    gates = [tmp_path / f"gate{n}" for n in range(3)]
    ids = [daemon.command("sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.02; done", queue="two") for gate in gates]
    eventually(lambda: daemon.stats()["running_jobs"] == 2)
    third = daemon.job(ids[2])
    assert (third["state"], third["waiting"]["reason"]) == ("QUEUED", "queue_full")
    gates[0].touch()
    daemon.wait(ids[0])
    eventually(lambda: daemon.job(ids[2])["state"] == "RUNNING")
    for gate in gates[1:]:
        gate.touch()
    assert {j["state"] for j in daemon.wait(*ids)} == {"DONE"}


def test_max_processes_bounds_all_queues_together(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home", SEMANTICA_MAX_PROCESSES="2") as daemon:
        ids = [daemon.command("sleep", "60", queue=f"q{n}") for n in range(3)]
        eventually(lambda: daemon.stats()["running_jobs"] == 2)
        assert daemon.job(ids[2])["waiting"]["reason"] == "machine_full"
        daemon.rpc("dev.cancel.v1", job_id=ids[0])
        eventually(lambda: daemon.job(ids[2])["state"] == "RUNNING")


@pytest.mark.parametrize("count", [3, 6, 7])
def test_a_queue_that_was_just_configured_uses_all_slots_for_commands(tmp_path: Path, count: int) -> None:
    """No share of the processes is kept for tasks that nobody can run."""
    with running_daemon(tmp_path / "home", SEMANTICA_MAX_PROCESSES=str(count)) as daemon:
        daemon.rpc("queues.configure.v1", queue="default", concurrency=count)
        for _ in range(count):
            daemon.command("sleep", "60")
        eventually(lambda: daemon.stats()["running_jobs"] == count, what="each slot is used")


def test_a_paused_queue_accepts_and_does_not_start(daemon: Daemon) -> None:
    daemon.rpc("queues.pause.v1", queue="later")
    job_id = daemon.command("true", queue="later")
    other = daemon.command("true", queue="now")
    daemon.wait(other)
    job = daemon.job(job_id)
    assert (job["state"], job["waiting"]["reason"]) == ("QUEUED", "queue_paused")
    daemon.rpc("queues.resume.v1", queue="later")
    daemon.wait(job_id)


@pytest.mark.parametrize("schedule", ["AT", "AFTER"])
def test_a_job_waits_for_its_time(daemon: Daemon, schedule: str) -> None:
    now = time.time_ns() // 1_000_000
    when = {"type": "AT", "scheduled_at": now + 400} if schedule == "AT" else {"type": "AFTER", "delay_ms": 400}
    job_id = daemon.command("true", schedule=when)
    job = daemon.job(job_id)
    assert (job["state"], job["waiting"]["reason"]) == ("SCHEDULED", "scheduled")
    [job] = daemon.wait(job_id)
    assert job["started_at"] >= job["run_at"] >= now + 400
    assert job["started_at"] - job["run_at"] < 1000


def test_a_schedule_survives_a_restart(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("true", schedule={"type": "AFTER", "delay_ms": 1500})
        run_at = daemon.job(job_id)["run_at"]
        daemon.kill()
        daemon.start()
        [job] = daemon.wait(job_id)
        assert job["run_at"] == run_at
        assert job["started_at"] >= run_at


def test_a_task_that_nobody_offers_stays_queued_and_says_so(daemon: Daemon) -> None:
    answer = daemon.rpc("dev.enqueue.v1", job_type="mail.send", payload={"to": "x"})
    job = daemon.job(answer["job_id"], "payload")
    assert (job["state"], job["execution_mode"], job["payload"]) == ("QUEUED", "IN_PROCESS", {"to": "x"})
    assert job["waiting"]["reason"] == "no_app"
    assert "mail.send" in job["waiting"]["text"]
    daemon.wait(daemon.command("true"))  # it does not stand in the way of others
    assert daemon.rpc("dev.cancel.v1", job_id=answer["job_id"])["cancelled"]


def test_a_payload_with_a_command_is_a_command(daemon: Daemon) -> None:
    answer = daemon.rpc("dev.enqueue.v1", job_type="x", payload={"command": "true"})
    assert daemon.wait(answer["job_id"])[0]["execution_mode"] == "SUBPROCESS"


# --- cancel ---

STUBBORN = """
trap '' TERM
setsid sh -c 'trap "" TERM; echo $$ >> "$1"; while :; do sleep 1; done' sh "$1" &
( setsid sh -c 'trap "" TERM; echo $$ >> "$1"; exec env -i sleep 1000' sh "$1" & )
echo $$ >> "$1"
while :; do sleep 1; done
"""


def test_cancel_ends_a_tree_that_leaves_its_session_and_ignores_sigterm(daemon: Daemon, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    job_id = daemon.command("sh", "-c", STUBBORN, "sh", str(pids), grace_ms=200)
    eventually(lambda: pids.exists() and len(pids.read_text().split()) == 3)
    assert daemon.rpc("dev.cancel.v1", job_id=job_id)["cancelled"]
    [job] = daemon.wait(job_id)
    assert (job["state"], job["end_cause"], job["stop_reason"]) == ("CANCELLED", "cancelled", "cancel")
    assert [pid for pid in pids.read_text().split() if alive(int(pid))] == []


def test_a_job_may_end_in_order_within_its_grace(daemon: Daemon, tmp_path: Path) -> None:
    ready, cleaned = tmp_path / "ready", tmp_path / "cleaned"
    script = f"trap 'echo bye; touch {cleaned}; exit 3' TERM; touch {ready}; while :; do sleep 0.05; done"
    job_id = daemon.command("sh", "-c", script)
    eventually(ready.exists)
    daemon.rpc("dev.cancel.v1", job_id=job_id)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["exit_code"]) == ("CANCELLED", 3)
    assert cleaned.exists()
    assert daemon.log(job_id).endswith("bye\n")


def test_a_second_cancel_can_only_shorten_the_grace(daemon: Daemon, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    job_id = daemon.command("sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.1; done", grace_ms=60_000)
    eventually(ready.exists)
    daemon.rpc("dev.cancel.v1", job_id=job_id)
    assert daemon.job(job_id)["state"] == "RUNNING"
    daemon.rpc("dev.cancel.v1", job_id=job_id, grace_ms=100)
    assert daemon.wait(job_id, timeout_ms=10_000)[0]["state"] == "CANCELLED"


def test_a_stopped_process_is_woken_to_end(daemon: Daemon, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    job_id = daemon.command("sh", "-c", f"trap 'exit 9' TERM; touch {ready}; kill -STOP $$; sleep 100", grace_ms=5000)
    eventually(ready.exists)
    daemon.rpc("dev.cancel.v1", job_id=job_id)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["exit_code"]) == ("CANCELLED", 9)


def test_cancel_of_waiting_and_finished_jobs(daemon: Daemon) -> None:
    waiting = daemon.command("true", schedule={"type": "AFTER", "delay_ms": 60_000})
    done = daemon.command("true")
    daemon.wait(done)
    assert daemon.rpc("dev.cancel.v1", job_id=waiting) == {
        "cancelled": True,
        "cancelled_count": 1,
        "job_id": waiting,
        "ended_as": None,
    }
    assert daemon.job(waiting)["state"] == "CANCELLED"
    before = daemon.job(done)
    for _ in range(2):
        again = daemon.rpc("dev.cancel.v1", job_id=done)
        assert again == {"cancelled": False, "cancelled_count": 0, "job_id": done, "ended_as": "DONE"}
    assert daemon.job(done) == before


@pytest.mark.parametrize("name", ["tag", "chain_group_id"])
def test_cancel_by_tag_and_group_spares_the_others(daemon: Daemon, name: str) -> None:
    running = [daemon.command("sleep", "60", queue=f"q{n}", **{name: "mine"}) for n in range(2)]
    waiting = daemon.command("true", schedule={"type": "AFTER", "delay_ms": 60_000}, **{name: "mine"})
    other = daemon.command("true", schedule={"type": "AFTER", "delay_ms": 60_000}, **{name: "yours"})
    eventually(lambda: daemon.stats()["running_jobs"] == 2)
    assert daemon.rpc("dev.cancel.v1", **{name: "mine"}) == {
        "cancelled": True,
        "cancelled_count": 3,
        "job_id": None,
        "ended_as": None,
    }
    assert {j["state"] for j in daemon.wait(*running, waiting)} == {"CANCELLED"}
    assert daemon.job(other)["state"] == "SCHEDULED"
    assert daemon.rpc("dev.cancel.v1", **{name: "nobody"})["cancelled_count"] == 0


def test_many_cancels_at_every_moment_of_a_short_life(daemon: Daemon) -> None:
    """Whatever moment the cancel hits, the job has one end and the slot comes back."""
    ids = [daemon.command("sleep", "0.01", queue=f"q{n % 4}") for n in range(40)]
    too_late: list[str] = []

    def cancel(job_id: str) -> None:
        answer = daemon.rpc("dev.cancel.v1", job_id=job_id)
        if not answer["cancelled"]:
            too_late.append(answer["ended_as"])

    threads = [threading.Thread(target=cancel, args=(job_id,)) for job_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = [j["state"] for j in daemon.wait(*ids)]
    assert set(states) <= {"DONE", "CANCELLED"}
    assert states.count("DONE") == len(too_late)
    assert daemon.stats()["system"]["running_processes"] == 0
    daemon.wait(daemon.command("true", queue="q0"))


# --- leftovers ---


def test_a_grandchild_that_keeps_stdout_open_holds_nothing_up(daemon: Daemon, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    job_id = daemon.command("sh", "-c", f"setsid sleep 1000 & echo $! > {pid_file}; echo done")
    [job] = daemon.wait(job_id, timeout_ms=10_000)
    assert (job["state"], daemon.log(job_id)) == ("DONE", "done\n")
    assert not alive(int(pid_file.read_text()))


def test_stdin_is_empty(daemon: Daemon) -> None:
    job_id = daemon.command("cat")
    assert daemon.wait(job_id)[0]["state"] == "DONE"


@pytest.mark.parametrize(
    ("payload", "parameter", "said"),
    [
        ({"comand": "true"}, "payload.comand", "`payload.comand` is not known (did you mean 'command'?)"),
        ({"command": "true", "cwd": "/"}, "payload.cwd", "`payload.cwd` is not known"),
        ({"args": []}, "payload.command", "`payload.command` is missing"),
        ({"command": 17}, "payload.command", "`payload.command` is not valid: Expected `str`, got `int`"),
        ({"command": "true", "args": ["a", 1]}, "payload.args[1]", "`payload.args[1]` is not valid"),
    ],
)
def test_what_is_wrong_with_a_command_is_named(daemon: Daemon, payload: object, parameter: str, said: str) -> None:
    with pytest.raises(RpcFailed) as refused:
        daemon.rpc("dev.enqueue.v1", job_type="x", execution_mode="SUBPROCESS", payload=payload)
    assert (refused.value.code, refused.value.data["details"]["parameter"]) == (4000, parameter)
    assert said in refused.value.message
    assert daemon.stats()["total_jobs"] == 0


# --- idempotency ---


def test_the_same_key_is_the_same_job(daemon: Daemon, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    argv = ("sh", "-c", f"echo x >> {mark}")
    first = daemon.rpc("dev.enqueue.v1", **command_params(*argv, idempotency_key="k"))
    again = daemon.rpc("dev.enqueue.v1", **command_params(*argv, idempotency_key="k", env={"OTHER": "1"}, umask=0))
    daemon.wait(first["job_id"])
    after = daemon.rpc("dev.enqueue.v1", **command_params(*argv, idempotency_key="k"))
    assert (first["deduplicated"], again["deduplicated"], after["deduplicated"]) == (False, True, True)
    assert {first["job_id"]} == {again["job_id"], after["job_id"]}
    assert after["state"] == "DONE"
    assert mark.read_text() == "x\n"
    with pytest.raises(RpcFailed) as refused:
        daemon.rpc("dev.enqueue.v1", **command_params("true", idempotency_key="k"))
    assert refused.value.code == 4002
    assert first["job_id"] in refused.value.message


# --- batches, wait, query ---


def test_enqueue_many_is_all_or_none(daemon: Daemon) -> None:
    good = command_params("true")
    with pytest.raises(RpcFailed) as refused:
        daemon.rpc("dev.enqueue_many.v1", jobs=[good, {**good, "payload": {"command": "true", "args": ["a\0b"]}}])
    assert (refused.value.code, refused.value.data["details"]["parameter"]) == (4000, "jobs[1].payload.args[0]")
    assert daemon.stats()["total_jobs"] == 0
    answer = daemon.rpc("dev.enqueue_many.v1", jobs=[good] * 20)
    jobs = daemon.wait(*[j["job_id"] for j in answer["jobs"]])
    assert {j["state"] for j in jobs} == {"DONE"}


def test_wait_answers_when_the_first_or_the_last_has_ended(daemon: Daemon, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    slow = daemon.command("sh", "-c", f"read x < {gate}", queue="slow")
    quick = daemon.command("true", queue="quick")
    answer = daemon.rpc("dev.wait.v1", job_ids=[slow, quick], mode="any", timeout_ms=20_000)
    assert [j["state"] for j in answer["jobs"]] == ["RUNNING", "DONE"] or answer["jobs"][1]["state"] == "DONE"
    answer = daemon.rpc("dev.wait.v1", job_ids=[slow, quick], mode="all", timeout_ms=50)
    assert answer["timed_out"]
    gate.write_text("go\n")
    assert {j["state"] for j in daemon.wait(slow, quick)} == {"DONE"}


def test_pages_hold_every_job_once_also_while_jobs_come(daemon: Daemon) -> None:
    daemon.rpc("queues.pause.v1", queue="p")
    first = daemon.rpc("dev.enqueue_many.v1", jobs=[command_params("true", queue="p", tag="t")] * 25)
    wanted = [j["job_id"] for j in first["jobs"]]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = daemon.rpc("dev.query_jobs.v1", filter={"tag": "t", "state": ["QUEUED"]}, limit=10, **cursor)
        seen += [j["job_id"] for j in page["items"]]
        daemon.command("true", queue="p", tag="t")
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == wanted[::-1]
    oldest = daemon.rpc("dev.query_jobs.v1", filter={"queue": ["p"]}, sort="oldest", limit=1)
    assert oldest["items"][0]["job_id"] == wanted[0]
    suffix = wanted[3].replace("-", "")[-8:]
    [found] = daemon.rpc("dev.query_jobs.v1", filter={"id_suffix": suffix})["items"]
    assert found["job_id"] == wanted[3]


# --- logs ---


def test_following_a_log_gives_every_byte_once_and_ends(daemon: Daemon) -> None:
    script = "for i in $(seq 1 40); do echo line $i; sleep 0.005; done"
    job_id = daemon.command("sh", "-c", script)
    text, offset = "", 0
    while True:
        piece = daemon.rpc("logs.tail.v1", job_id=job_id, offset=offset, limit=64, wait_ms=10_000)
        text += piece["chunk"]
        offset = piece["next_offset"]
        if piece["eof"]:
            break
    assert text == "".join(f"line {n}\n" for n in range(1, 41))
    lines = daemon.rpc("logs.tail.v1", job_id=job_id, lines=2)
    assert lines["lines"] == ["line 39", "line 40"]
    assert daemon.rpc("logs.tail.v1", job_id=job_id, offset=-8)["chunk"] == "line 40\n"
    long = daemon.command("seq", "120")
    daemon.wait(long)
    assert daemon.rpc("logs.tail.v1", job_id=long)["lines"] == [str(n) for n in range(71, 121)], "50 unless told"


def test_chunks_keep_characters_whole_and_other_bytes_exact(daemon: Daemon) -> None:
    umlauts = "ä€𝄞" * 100
    job_id = daemon.command("sh", "-c", f"printf '{umlauts}'")
    binary = daemon.command("sh", "-c", "printf '\\377\\000\\303'")
    daemon.wait(job_id, binary)
    text, offset = "", 0
    while offset < len(umlauts.encode()):
        piece = daemon.rpc("logs.tail.v1", job_id=job_id, offset=offset, limit=7)
        assert piece["encoding"] == "utf-8"
        text += piece["chunk"]
        offset = piece["next_offset"]
    assert text == umlauts
    piece = daemon.rpc("logs.tail.v1", job_id=binary, offset=0)
    assert (piece["encoding"], base64.b64decode(piece["chunk"]), piece["eof"]) == ("base64", b"\xff\0\xc3", True)


def test_a_follower_may_come_before_the_job_starts(daemon: Daemon) -> None:
    daemon.rpc("queues.pause.v1", queue="later")
    job_id = daemon.command("echo", "hello", queue="later")
    answers: list[str] = []

    def follow() -> None:
        offset = 0
        while True:
            piece = daemon.rpc("logs.tail.v1", job_id=job_id, offset=offset, wait_ms=20_000)
            answers.append(piece["chunk"])
            offset = piece["next_offset"]
            if piece["eof"]:
                return

    follower = threading.Thread(target=follow)
    follower.start()
    daemon.rpc("queues.resume.v1", queue="later")
    follower.join(20)
    assert "".join(answers) == "hello\n"


def test_a_log_over_its_cap_keeps_head_and_tail(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (tmp_path / "semantica.toml").write_text("log_max_bytes = 262144\n")
    daemon = Daemon(home)
    daemon.spawn(cwd=tmp_path)
    try:
        daemon.wait_ready()
        piece = "head -c 100000 /dev/zero | tr '\\0' x"
        script = f"echo first; i=0; while [ $i -lt 60 ]; do {piece}; i=$((i+1)); sleep 0.05; done; echo; echo last"
        job_id = daemon.command("sh", "-c", script)
        [job] = daemon.wait(job_id, timeout_ms=60_000)
        assert job["state"] == "DONE"
        used = Path(job["log_path"]).stat().st_blocks * 512
        assert used < 3_000_000, "the middle was cut"
        start = daemon.rpc("logs.tail.v1", job_id=job_id, offset=0)
        assert start["chunk"].startswith("first\n")
        assert daemon.rpc("logs.tail.v1", job_id=job_id, offset=-5)["chunk"] == "last\n"
        read = omitted = offset = 0
        while True:
            piece = daemon.rpc("logs.tail.v1", job_id=job_id, offset=offset, limit=1_000_000)
            read += len(piece["chunk"])
            omitted += piece["omitted_bytes"]
            offset = piece["next_offset"]
            if piece["eof"]:
                break
        assert omitted > 0
        assert read + omitted == Path(job["log_path"]).stat().st_size == 6 + 60 * 100_000 + 1 + 5
    finally:
        stop_for_certain(daemon)


REOPENING = "echo one; echo two > /dev/stderr; echo three | tee /dev/stderr; echo four >> /dev/stdout; echo five"


def test_a_job_that_opens_its_own_output_loses_nothing(daemon: Daemon) -> None:
    merged, split = (daemon.command("sh", "-c", REOPENING, stderr=stderr) for stderr in ("merged", "split"))
    daemon.wait(merged, split)
    lines = daemon.log(merged).splitlines()
    assert lines == ["one", "two", "three", "three", "four", "five"]
    assert daemon.log(split) == "one\nthree\nfour\nfive\n"
    assert daemon.rpc("logs.tail.v1", job_id=split, offset=0, stream="stderr")["chunk"] == "two\nthree\n"


TALKS_LATE = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
print(*range(1, 3001), sep="\\n")
"""


def test_output_goes_on_after_the_daemon_was_killed(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command(sys.executable, "-c", TALKS_LATE, on_interrupt="fail")
        log = Path(daemon.job(job_id)["log_path"])
        eventually(lambda: log.exists() and log.read_text() == "ready\n", what="the first line is in the log")
        daemon.kill()
        daemon.start()
        daemon.wait(job_id)
        assert daemon.log(job_id) == "ready\n" + "".join(f"{n}\n" for n in range(1, 3001))
