"""`semtask run`: the command's streams, its exit code, and what signals do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from tests.cli.rig import COMMAND, LIMIT_S, Shell, alive, eventually, kill

PRINT_BOTH = "echo to-out; echo to-err >&2"


def last_line(err: str) -> str:
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["true"], 0, "succeeded in"),
        (["sh", "-c", "exit 3"], 3, "failed with exit code 3"),
        (["sh", "-c", "exit 125"], 125, "failed with exit code 125"),
        (["sh", "-c", "kill -9 $$"], 137, "ended by signal 9"),
        (["sh", "-c", "kill -TERM $$"], 143, "ended by signal 15"),
        (["no-such-program-anywhere"], 127, "spawn_failed"),
        (["/etc/passwd"], 126, "spawn_failed"),
    ],
)
def test_the_exit_code_is_the_commands(served: Shell, argv: list[str], code: int, said: str) -> None:
    ran = served("run", "--", *argv)
    assert ran.code == code, ran
    assert ran.out == ""
    assert said in last_line(ran.err)
    assert last_line(ran.err).startswith("semtask: ")


def test_streams_stay_apart(served: Shell) -> None:
    ran = served("run", "sh", "-c", PRINT_BOTH)
    assert ran.out == "to-out\n"
    assert ran.err.startswith("to-err\n")
    logs = served("logs", "last")
    assert (logs.code, logs.out, logs.err) == (0, "to-out\n", "to-err\n")
    assert served("logs", "last", "--stderr").out == "to-err\n"
    assert served("logs", "last", "--stdout").out == "to-out\n"


def test_a_message_begins_a_line_where_the_output_stops_within_one(served: Shell) -> None:
    code, seen = served.on_terminal("run", "printf", "a\nb")
    assert (code, seen.splitlines()[:2]) == (0, ["a", "b"])
    assert re.fullmatch(r"semtask: \w{8} succeeded in .* s", seen.splitlines()[2])
    apart = served("run", "sh", "-c", "printf out; printf err >&2")
    assert apart.out == "out"
    assert apart.err.startswith("err\nsemtask: ")
    assert served("run", "-q", "sh", "-c", "printf out; printf err >&2").err == "err"


def test_streams_into_one_file_keep_their_order(served: Shell, tmp_path: Path) -> None:
    script = "for i in 1 2 3 4 5; do echo o$i; echo e$i >&2; done"
    with (tmp_path / "both").open("wb") as both:
        code = subprocess.run(
            [*COMMAND, "run", "-q", "sh", "-c", script],
            env=served.env,
            stdout=both,
            stderr=both,
            timeout=LIMIT_S,
            check=False,
        ).returncode
    assert code == 0
    assert (tmp_path / "both").read_text() == "".join(f"o{i}\ne{i}\n" for i in range(1, 6))


def test_bytes_come_through_unchanged(served: Shell, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000 + "ä".encode()[:1]
    (tmp_path / "bytes").write_bytes(data)
    done = subprocess.run(
        [*COMMAND, "run", "--", "cat", str(tmp_path / "bytes")],
        env=served.env,
        capture_output=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert done.stdout == data
    again = subprocess.run([*COMMAND, "logs", "last"], env=served.env, capture_output=True, timeout=LIMIT_S, check=True)
    assert again.stdout == data


def test_what_the_command_takes_from_its_caller(served: Shell, tmp_path: Path) -> None:
    script = "pwd; umask; echo $PATH; echo ${SECRET-unset} $GIVEN $TAKEN; echo $TRACEPARENT"
    mine = {"PATH": f"/mine:{os.environ['PATH']}", "SECRET": "x", "TAKEN": "t"}
    traceparent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    ran = served(
        "run", "--env", "GIVEN=g", "--env", "TAKEN", "sh", "-c", script,
        env={**mine, "TRACEPARENT": traceparent}, cwd=tmp_path, umask=0o027,
    )  # fmt: skip
    lines = ran.out.splitlines()
    assert lines[:4] == [str(tmp_path), "0027", mine["PATH"], "unset g t"]
    assert lines[4].startswith("00-" + "a" * 32)
    other = served("run", "--cwd", str(tmp_path.parent), "pwd")
    assert other.out == f"{tmp_path.parent}\n"
    assert served("run", "true", env={"TRACEPARENT": "broken"}).code == 0


def test_options_reach_the_job(served: Shell) -> None:
    argv = [
        "-Q",
        "night",
        "--priority",
        "7",
        "-t",
        "sheep",
        "--name",
        "count",
        "--grace",
        "1s",
        "--on-interrupt",
        "requeue",
    ]
    job_id = served("run", "-d", *argv, "--idempotency-key", "k-1", "--", "true").id
    job = served.job(job_id)
    shown = [job[k] for k in ("queue", "priority", "tag", "job_type", "grace_ms", "on_interrupt", "idempotency_key")]
    assert shown == ["night", 7, "sheep", "count", 1000, "requeue", "k-1"]
    assert served("run", "-d", *argv, "--idempotency-key", "k-1", "--", "true").id == job_id


def test_later(served: Shell) -> None:
    job_id = served("run", "-d", "--in", "1h", "true").id
    assert served.job(job_id)["state"] == "SCHEDULED"
    at = served("run", "-d", "--at", "2099-01-01T00:00Z", "true").id
    assert served.job(at)["run_at"] == "2099-01-01T00:00:00.000Z"
    begin = served("run", "--in", "300ms", "sh", "-c", "echo later")
    assert (begin.code, begin.out) == (0, "later\n")
    assert served("cancel", job_id, at).code == 0


def test_json_is_all_there_is_on_stdout(served: Shell) -> None:
    ran = served("run", "--json", "sh", "-c", "printf one; printf two >&2; exit 4")
    *logs, job = ran.json_lines
    assert ran.code == 4
    assert {(log["stream"], log["chunk"]) for log in logs} == {("stdout", "one"), ("stderr", "two")}
    assert (job["schema"], job["state"], job["exit_code"]) == ("job.v1", "FAILED", 4)
    assert ran.err == ""
    detached = served("run", "-d", "--json", "true").json
    assert detached["schema"] == "enqueued.v1"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_cancels_and_waits(served: Shell, number: signal.Signals, code: int) -> None:
    script = "trap 'echo cleaned; exit 0' TERM; echo $$; while :; do sleep 0.05; done"
    with served.start("run", "sh", "-c", script) as process:
        assert process.stdout is not None
        job_pid = int(process.stdout.readline())
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code
    assert out == b"cleaned\n"
    assert b"cancelling" in err
    assert "was cancelled" in last_line(err.decode())
    assert not alive(job_pid)
    assert served.job(served("ls", "-q", "--limit", "1").id)["state"] == "CANCELLED"


_DEAF = "trap '' TERM; echo $$; while :; do sleep 0.05; done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_kills(served: Shell, number: signal.Signals) -> None:
    with served.start("run", "--grace", "60s", "sh", "-c", _DEAF) as process:
        job_pid = int(line_of(process.stdout))
        process.send_signal(number)
        assert "cancelling" in (said := line_of(process.stderr))
        assert "again kills it" in said
        job_id = served("ls", "-q", "--limit", "1").id
        eventually(lambda: served.job(job_id)["stop_reason"] == "cancel", what="the cancel is stored")
        assert alive(job_pid)
        process.send_signal(number)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + number
    assert "killing" in err.decode().splitlines()[0]
    assert "was cancelled" in last_line(err.decode())
    assert not alive(job_pid)
    assert served.job(job_id)["state"] == "CANCELLED"


def test_the_third_signal_does_not_wait(shell: Shell) -> None:
    """A daemon that stands still can neither stop the job nor say that it has ended."""
    shell("up")
    daemon = shell.daemon_pid()
    with shell.start("run", "--grace", "60s", "sh", "-c", _DEAF) as process:
        job_pid = int(line_of(process.stdout))
        process.send_signal(signal.SIGINT)
        line_of(process.stderr)
        job_id = shell("ls", "-q", "--limit", "1").id
        eventually(lambda: shell.job(job_id)["stop_reason"] == "cancel", what="the cancel is stored")
        kill(daemon, signal.SIGSTOP)
        try:
            process.send_signal(signal.SIGINT)
            assert "again does not wait" in line_of(process.stderr)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=LIMIT_S)
        finally:
            kill(daemon, signal.SIGCONT)
    assert process.returncode == 130
    assert f"`semtask wait {job_id[-8:]}`" in err.decode()
    shell("cancel", "--grace", "0", job_id)
    shell.until(job_id, "CANCELLED")
    eventually(lambda: not alive(job_pid), what="the job is gone")


@pytest.mark.parametrize("by_setting", [False, True])
def test_ctrl_c_detaches_where_it_was_asked_to(served: Shell, by_setting: bool) -> None:
    served.env["SEMANTICA_CTRL_C"] = "detach" if by_setting else "cancel"
    option = [] if by_setting else ["--ctrl-c=detach"]
    try:
        with served.start("run", *option, "sh", "-c", "echo $$; exec sleep 60") as process:
            job_pid = int(line_of(process.stdout))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=LIMIT_S)
    finally:
        del served.env["SEMANTICA_CTRL_C"]
    assert process.returncode == 130
    job_id = served("ls", "-q", "--limit", "1").id
    assert err.decode() == (
        f"semtask: detached from {job_id[-8:]}, which goes on; `semtask logs -f {job_id[-8:]}` follows it, "
        f"`semtask cancel {job_id[-8:]}` stops it\n"
    )
    job = served.job(job_id)
    assert (job["state"], job["stop_reason"], alive(job_pid)) == ("RUNNING", None, True)
    served("cancel", job_id)


def test_sigterm_cancels_and_sighup_leaves_whatever_ctrl_c_does(served: Shell) -> None:
    for number, code, state in ((signal.SIGTERM, 143, "CANCELLED"), (signal.SIGHUP, -signal.SIGHUP, "RUNNING")):
        for wish in ("cancel", "detach"):
            with served.start("run", f"--ctrl-c={wish}", "sh", "-c", "echo $$; exec sleep 60") as process:
                line_of(process.stdout)
                process.send_signal(number)
                assert process.wait(LIMIT_S) == code
            job_id = served("ls", "-q", "--limit", "1").id
            assert served.job(job_id)["state"] == state
            served("cancel", job_id)


def test_ctrl_c_cannot_ask_nobody(served: Shell) -> None:
    for argv, said in (
        (["-d", "--ctrl-c=detach"], "--ctrl-c and --detach exclude each other"),
        (["--ctrl-c=ask"], "--ctrl-c=ask needs a terminal to ask on"),
    ):
        refused = served("run", *argv, "true", start_new_session=True)
        assert (refused.code, said in refused.err) == (2, True), refused
    served.env["SEMANTICA_CTRL_C"] = "ask"  # where it is the default, it is no obstacle
    try:
        with served.start("run", "sh", "-c", "echo $$; exec sleep 60", start_new_session=True) as process:
            line_of(process.stdout)
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT_S) == 130
    finally:
        del served.env["SEMANTICA_CTRL_C"]
    assert served.job(served("ls", "-q", "--limit", "1").id)["state"] == "CANCELLED"


def line_of(stream: IO[bytes] | None) -> str:
    assert stream is not None
    return stream.readline().decode()


def test_a_job_that_waits_says_why(served: Shell) -> None:
    served("pause", "held")
    with served.start("run", "-Q", "held", "echo", "ran") as process:
        assert process.stderr is not None
        assert b"paused" in process.stderr.readline()
        served("resume", "held")
        out, _ = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (0, b"ran\n")


def test_closed_descriptors_are_not_mixed_up_with_ours(served: Shell) -> None:
    """With stdout closed the first socket would become descriptor 1."""
    line = f"{' '.join(COMMAND)} run sh -c 'echo lost; echo kept >&2; exit 5' <&- >&-"
    done = subprocess.run(["bash", "-c", line], env=served.env, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith(b"kept\nsemtask: ")
    assert served("logs", "last").out == "lost\n"


def test_a_full_disk_is_told(served: Shell) -> None:
    with open("/dev/full", "wb") as full, served.start("run", "echo", "x", stdout=full) as process:
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert b"No space left on device" in err
    assert b"Traceback" not in err
    assert served("logs", "last").out == "x\n"


def test_a_killed_client_loses_nothing(served: Shell) -> None:
    with served.start("run", "sh", "-c", "echo $$; sleep 0.5; echo finished") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    job_id = served("ls", "-q", "--limit", "1").id
    followed = served("logs", "-f", job_id)
    assert followed.out.endswith("finished\n")
    assert served.job(job_id)["state"] == "DONE"


def test_output_survives_a_restart_of_the_daemon(shell: Shell) -> None:
    """kill -9 in the middle: the job is run again, and the follower shows both attempts to their ends."""
    script = "echo attempt $SEMANTICA_JOB_ID; echo $$ >&2; [ -e again ] && exit 0; touch again; sleep 60"
    assert shell("up").code == 0
    folder = shell.home.parent
    with shell.start("run", "--on-interrupt", "requeue", "sh", "-c", script, cwd=folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"attempt")
        kill(shell.daemon_pid())
        assert shell("up").code == 0
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert out.startswith(b"attempt")
    assert len(err.split()) > 2
    (job,) = shell("ls", "--json").json_lines
    assert (job["state"], job["interruptions"], job["attempts"]) == ("DONE", 1, 2)


def test_a_daemon_that_stays_away_is_told_with_what_to_do(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = "import semtask.client.patience as p; p.PATIENCE_S = 0.3; from semtask.cli.main import main; main()"
    assert shell("up").code == 0
    with subprocess.Popen(
        [sys.executable, "-c", quick, "run", "sh", "-c", "echo on; sleep 60"],
        env=shell.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        kill(shell.daemon_pid())
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3
    assert b"`semtask up`, then `semtask logs -f" in err


def test_a_client_under_nohup_and_ampersand(shell: Shell) -> None:
    """SIGINT and SIGHUP are ignored there; the job and the daemon are not to inherit that."""
    line = f"nohup {' '.join(COMMAND)} run -d sh -c 'kill -INT $$; sleep 5' > id 2>&1 & wait"
    subprocess.run(["sh", "-c", line], env=shell.env, cwd=shell.home.parent, timeout=LIMIT_S, check=True)
    job_id = (shell.home.parent / "id").read_text().split()[-1]
    job = shell.until(job_id, "FAILED")
    assert (job["end_cause"], job["signal"]) == ("signal", signal.SIGINT)
    pid = shell.daemon_pid()
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert int(status["SigBlk"], 16) == 0
    assert not int(status["SigIgn"], 16) & (1 << (signal.SIGINT - 1) | 1 << (signal.SIGHUP - 1))
