"""What happens when nobody takes our output: a reader that has gone, a full disk, a terminal that hung up."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.rig import COMMAND, LIMIT_S, Shell, Terminal, alive, eventually, processes_of

SEMTASK = " ".join(COMMAND)


def pipeline(served: Shell, line: str) -> tuple[int, str, str]:
    """(the exit code of its first command, stdout, stderr) of a line of bash; `semtask` is the command line."""
    line = f'semtask() {{ {SEMTASK} "$@"; }}; {line}; exit ${{PIPESTATUS[0]}}'
    with subprocess.Popen(
        ["bash", "-c", line],
        env=served.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as bash:
        try:
            out, err = bash.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(bash.pid, signal.SIGKILL)
            raise
    return bash.returncode, out.decode(), err.decode()


@pytest.fixture(autouse=True)
def nothing_runs_on(served: Shell) -> Iterator[None]:
    """A job that was left would hold a place of the queue."""
    yield
    if living := served("ls", "-q", "-s", "running").out.split():
        served("cancel", "--grace", "0", *living)


def newest(served: Shell) -> str:
    return served("ls", "-q", "--limit", "1").id


def of_job(served: Shell, job_id: str) -> list[int]:
    """The processes that run this job."""
    found = []
    for pid in processes_of(served.home):
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SEMANTICA_JOB_ID={job_id}".encode() in environ:
            found.append(pid)
    return found


@pytest.mark.parametrize(
    ("line", "out", "says"),
    [
        ("semtask run -- yes | head -2", "y\ny\n", True),
        ("semtask run -q -- yes | head -1", "y\n", False),
        ("semtask run -- sh -c 'yes >&2' 2>&1 >/dev/null | head -1", "y\n", False),  # stderr itself has gone
        ("semtask run -- yes 2>&1 | head -1", "y\n", False),
        ("semtask run --json -- yes | head -c 1", "{", True),
        ("semtask run --retries 3 -- yes | head -1", "y\n", True),
    ],
)
def test_a_reader_that_goes_ends_the_job(served: Shell, line: str, out: str, says: bool) -> None:
    code, printed, err = pipeline(served, line)
    assert (code, printed) == (141, out)
    job_id = newest(served)
    job = served.job(job_id)
    assert (job["state"], job["stop_reason"], job["attempts"]) == ("CANCELLED", "cancel", 1)
    said = f"semtask: cancelled {job_id[-8:]}, as nobody reads its output any more\n"
    assert err == (said if says else "")
    assert of_job(served, job_id) == []


def test_a_job_that_has_ended_by_itself_stays_as_it_is(served: Shell) -> None:
    code, out, err = pipeline(served, "semtask run -- seq 300000 | { read line; sleep 1; echo $line; }")
    assert (code, out, err) == (141, "1\n", "")
    assert served.job(newest(served))["state"] == "DONE"


def test_a_reader_that_goes_while_nothing_is_written_is_not_noticed(served: Shell) -> None:
    """As in a pipeline of commands."""
    assert pipeline(served, "semtask run -- sh -c 'sleep 0.3' | true")[0] == 0
    assert served.job(newest(served))["state"] == "DONE"


def test_who_only_looks_stops_no_job(served: Shell) -> None:
    job_id = served("run", "-d", "--", "sh", "-c", "while :; do echo line; sleep 0.01; done").id
    for line in (f"semtask logs -f {job_id} | head -1", f"semtask logs -f --json {job_id} | head -c 1"):
        code, out, err = pipeline(served, line)
        assert (code, out[:1], err) == (141, out[:1], ""), line
        assert out
    assert served.job(job_id)["state"] == "RUNNING"
    served("cancel", job_id)


def test_a_signal_stops_the_job_though_nobody_reads_the_messages(served: Shell) -> None:
    """Ctrl-C in `semtask run ... 2>&1 | tee log` ends tee too."""
    with served.start("run", "--", "sh", "-c", "echo $$; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        job_pid = int(process.stdout.readline())
        process.stderr.close()
        process.terminate()
        assert process.wait(LIMIT_S) == 143
    assert not alive(job_pid)
    assert served.job(newest(served))["state"] == "CANCELLED"


@pytest.mark.parametrize("command", ["ls", "--help", "ls --json", "status", "queues --json", "version", "config show"])
def test_a_full_disk_is_reported_in_one_line(served: Shell, command: str) -> None:
    served("run", "true")
    code, out, err = pipeline(served, f"semtask {command} > /dev/full")
    assert (code, out) == (1, "")
    assert err == "semtask: [Errno 28] No space left on device\n"
    assert pipeline(served, f"semtask {command} > /dev/full 2>&1")[:2] == (1, "")
    code, _, err = pipeline(served, f"semtask {command} | true")
    assert (code in {0, 141}, err) == (True, "")  # 0: it was quicker
    code, _, err = pipeline(served, f"semtask {command} >&-")
    assert (code, err) == (0, "")


def test_messages_that_cannot_be_written_do_not_change_the_exit_code(served: Shell) -> None:
    for stderr in ("/dev/full", "&-", "/dev/stdout | true"):
        assert pipeline(served, f"semtask show 00000000 2>{stderr}")[0] == 4, stderr
        assert pipeline(served, f"semtask run -- sh -c 'exit 7' 2>{stderr}")[0] == 7, stderr


def test_a_full_disk_does_not_end_the_job(served: Shell) -> None:
    with open("/dev/full", "wb") as full, served.start("run", "--", "yes", stdout=full) as process:
        _, err = process.communicate(timeout=LIMIT_S)
    name = newest(served)[-8:]
    assert process.returncode == 1
    assert err.decode() == (
        f"semtask: cannot write the output here: No space left on device; job {name} is not affected,"
        f" `semtask logs -f {name}` follows it, `semtask cancel {name}` stops it\n"
    )
    assert served.job(newest(served))["state"] == "RUNNING"
    served("cancel", name)


@pytest.mark.parametrize("nohup", [False, True])
def test_a_job_outlives_its_terminal(served: Shell, nohup: bool) -> None:
    """Also where SIGHUP is ignored, and writing fails."""
    script = "trap '' HUP; " * nohup + f"exec {SEMTASK} run -- sh -c 'while :; do echo line; sleep 0.01; done'"
    with Terminal(["/bin/sh", "-c", script], served.env) as terminal:
        terminal.read_until("line")
        terminal.hang_up()
        assert terminal.process.wait(LIMIT_S) == (1 if nohup else -1)
    job_id = newest(served)
    assert served.job(job_id)["state"] == "RUNNING"
    served("cancel", job_id)
    eventually(lambda: not of_job(served, job_id), what="the job is gone")
