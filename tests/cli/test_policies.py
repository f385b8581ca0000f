"""Retries, limits of time and subjects, as the command line asks for them and tells of them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.cli.rig import COMMAND, LIMIT_S, Shell, Terminal, eventually


def counting(folder: Path, succeed_at: int) -> str:
    """A script that fails until it is run for the n-th time."""
    return f"echo run >> {folder}/runs; n=$(wc -l < {folder}/runs); echo out $n; [ $n -ge {succeed_at} ] || exit 7"


def test_run_follows_the_retries_to_the_success(served: Shell, tmp_path: Path) -> None:
    ran = served("run", "--retries", "4", "--retry-base", "200ms", "sh", "-c", counting(tmp_path, 3))
    assert (ran.code, ran.out) == (0, "out 1\nout 2\nout 3\n")
    first, second, last = ran.err.splitlines()
    assert re.search(r"attempt 1 ended \(exit code 7\); attempt 2 of 5 in 0\.[12] s", first), first
    assert re.search(r"attempt 2 ended \(exit code 7\); attempt 3 of 5 in 0\.[34] s", second), second
    assert "succeeded in" in last
    assert last.endswith("in attempt 3 of 5")


def test_run_returns_the_last_exit_code_when_the_retries_are_used_up(served: Shell, tmp_path: Path) -> None:
    script = f"echo >> {tmp_path}/runs; exit $(wc -l < {tmp_path}/runs)"
    ran = served("run", "--retries", "2", "--retry-base", "10ms", "sh", "-c", script)
    assert ran.code == 3
    assert "failed with exit code 3" in ran.err.splitlines()[-1]
    job = served.job("last")
    assert (job["max_attempts"], job["attempts"], job["failures"]) == (3, 3, 3)
    assert [attempt["exit_code"] for attempt in job["attempts_list"]] == [1, 2, 3]
    assert served("logs", "last", "--attempt", "1").code == 0


def test_retries_without_a_pause_show_all_output(served: Shell, tmp_path: Path) -> None:
    ran = served("run", "--retries", "3", "--retry-base", "0", "sh", "-c", counting(tmp_path, 4))
    assert (ran.code, ran.out.split()) == (0, ["out", "1", "out", "2", "out", "3", "out", "4"])
    assert ran.err.count(": attempt ") == 3


def test_show_tells_of_the_next_attempt_and_why(served: Shell) -> None:
    job_id = served("run", "-d", "--retries", "4", "--retry-base", "1h", "--retry-max", "2h", "sh", "-c", "exit 9").id
    served.until(job_id, "SCHEDULED")
    text = served("show", job_id).out
    waits = next(line for line in text.splitlines() if line.startswith("waits"))
    assert re.search(
        r"attempt 2 of 5 in \d+m\d+s \(20\d\d-.*Z\); the last one: exit code 9|attempt 2 of 5 in 1h0\dm", waits
    )
    assert "exit code 9" in waits
    assert re.search(r"^attempts +2 of 5$", text, re.MULTILINE)
    assert re.search(r"^budgets used +1 failure$", text, re.MULTILINE)
    assert not re.search(r"^took", text, re.MULTILINE)
    with served.start("run", "--retries", "1", "--retry-base", "1h", "--retry-max", "2h", "false") as process:
        assert process.stderr is not None
        assert b"attempt 1 ended (exit code 1); attempt 2 of 2 in" in process.stderr.readline()
    assert served("cancel", job_id, "last").code == 0


def test_the_policies_reach_the_job(served: Shell) -> None:
    begin = time.time()
    job_id = served(
        "run", "-d", "--in", "1h", "--retries", "3", "--retry-base", "2s", "--retry-max", "1m", "--backoff", "1.5",
        "--retry-on-crash", "--timeout", "90s", "--deadline", "3h", "--ttl", "10m", "--subject", "reach", "true",
    ).id  # fmt: skip
    job = served("show", job_id, "--json").json
    names = ("max_attempts", "retry_base_delay_ms", "retry_max_delay_ms", "backoff_factor", "retry_on_crash")
    assert [job[name] for name in names] == [4, 2000, 60_000, 1.5, True]
    assert [job[name] for name in ("timeout_ms", "ttl_ms", "subject_key")] == [90_000, 600_000, "reach"]
    wanted = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(begin + 3 * 3600))
    assert job["deadline"].startswith(wanted) or job["deadline"] > wanted
    text = served("show", job_id).out
    assert re.search(r"^deadline +20.*Z \(in 3h00m\)$|^deadline .*in 2h59m", text, re.MULTILINE)
    assert re.search(r"^timeout +1m30s$", text, re.MULTILINE)
    assert re.search(r"^ttl +10m00s$", text, re.MULTILINE)
    assert re.search(r"^subject +reach, generation \d+$", text, re.MULTILINE)
    assert served("cancel", job_id).code == 0


def test_a_task_takes_the_same_options(served: Shell) -> None:
    job_id = served("enqueue", "mail.send", "--retries", "2", "--deadline", "2099-01-01T00:00Z", "--ttl", "1h").id
    job = served("show", job_id, "--json").json
    assert (job["max_attempts"], job["deadline"], job["ttl_ms"]) == (3, "2099-01-01T00:00:00.000Z", 3_600_000)
    assert served("cancel", job_id).code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--timeout", "300ms"], "ran longer than its timeout of 0.3 s"),
        (["--deadline", "300ms"], "failed (deadline)"),
    ],
)
def test_a_time_limit_ends_with_124(served: Shell, options: list[str], said: str) -> None:
    begin = time.monotonic()
    ran = served("run", *options, "sh", "-c", "echo kept; exec sleep 60")
    assert (ran.code, ran.out) == (124, "kept\n")
    assert said in ran.err.splitlines()[-1]
    assert time.monotonic() - begin < LIMIT_S / 2


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--ttl", "200ms"], 75, "did not start within its ttl of 0.2 s"),
        (["--deadline", "200ms"], 124, "its deadline passed before it started"),
    ],
)
def test_what_never_ran(served: Shell, options: list[str], code: int, said: str) -> None:
    served("pause", "never")
    ran = served("run", "-Q", "never", *options, "true")
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err.splitlines()[-1]


def test_a_newer_job_of_the_subject_takes_the_place(served: Shell) -> None:
    served("pause", "lane")
    with served.start("run", "-Q", "lane", "--subject", "file:a", "echo", "old") as process:
        old = eventually(lambda: served("ls", "-q", "-Q", "lane").out).strip()
        new = served("run", "-d", "-Q", "lane", "--subject", "file:a", "echo", "new")
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75
    assert "superseded 1 earlier job of this subject" in new.err
    assert f"was superseded by {new.id[-8:]}" in err.decode().splitlines()[-1]
    job = served("show", old, "--json").json
    assert (job["state"], job["superseded_by"]) == ("SUPERSEDED", new.id)
    assert new.id in served("show", old).out
    assert served("show", "-q", "@file:a").id == new.id
    joined = served("run", "-d", "-Q", "lane", "--subject", "file:a", "--on-duplicate", "join", "echo", "third")
    assert joined.id == new.id
    assert f"joined {new.id[-8:]}" in joined.err
    refused = served("run", "-d", "-Q", "lane", "--subject", "file:a", "--on-duplicate", "reject", "echo")
    assert (refused.code, refused.out) == (5, "")
    assert served("resume", "lane").code == 0


def test_who_joins_sees_all_output_of_the_other(served: Shell) -> None:
    """The first one wrote its streams apart; the second one, with both on a terminal, must not lose one of them."""
    go = served.home.parent / "go"
    command = ["sh", "-c", f"until [ -e {go} ]; do sleep 0.02; done; echo to-out; echo to-err >&2"]
    with served.start("run", "--subject", "both", *command) as first:
        eventually(lambda: served("ls", "-q", "--subject", "both", "-s", "running").out)
        join = [*COMMAND, "run", "--subject", "both", "--on-duplicate", "join", *command]
        with Terminal(join, served.env) as terminal:
            terminal.read_until("joined")
            go.touch()
            code, text = terminal.finish()
        out, _ = first.communicate(timeout=LIMIT_S)
    assert (first.returncode, out) == (0, b"to-out\n")
    assert code == 0
    assert "to-out" in text
    assert "to-err" in text


# --- retry -----------------------------------------------------------------------------------------------------------


def failed(shell: Shell, *options: str) -> str:
    job_id = shell("run", "-d", *options, "false").id
    shell.until(job_id, "FAILED")
    return job_id


def test_retry_enqueues_copies_and_prints_their_ids(served: Shell) -> None:
    one, two = failed(served, "-t", "copies"), failed(served, "-t", "copies")
    said = served("retry", one, two)
    assert said.code == 0, said
    copies = said.out.split()
    assert len(copies) == 2
    assert [served.job(copy)["retry_of"] for copy in copies] == [one, two]
    assert re.search(rf"^retry of +{one}$", served("show", copies[0]).out, re.MULTILINE)
    as_json = served("retry", one, "--json").json
    assert (as_json["schema"], as_json["retry_of"]) == ("retried.v1", one)


def test_a_live_or_unknown_job_is_refused_and_the_others_are_retried(served: Shell) -> None:
    done = failed(served)
    live = served("run", "-d", "--in", "1h", "true").id
    said = served("retry", live, done)
    assert said.code == 5
    assert "SCHEDULED" in said.err
    assert served.job(said.id)["retry_of"] == done
    unknown = served("retry", "01a207a1-0000-7000-8000-000000000000", done)
    assert unknown.code == 4
    assert len(unknown.out.split()) == 1
    assert served("cancel", live).code == 0


@pytest.mark.parametrize("by", ["--queue", "--tag"])
def test_all_failed_ones_are_retried_once(served: Shell, by: str) -> None:
    word = f"crowd{by.strip('-')}"
    ids = [failed(served, by, word) for _ in range(3)]
    other = failed(served)
    served("pause", word if by == "--queue" else "default")
    try:
        said = served("retry", "--failed", by, word)
        copies = said.out.split()
        assert said.err == "semtask: retrying 3 failed jobs\n"
        assert [served.job(copy)["retry_of"] for copy in copies] == ids
        assert other not in ids
        again = served("retry", "--failed", by, word)
        assert (again.code, again.out, again.err) == (0, "", "semtask: there is no failed job to retry\n")
    finally:
        served("resume", word if by == "--queue" else "default")


def test_more_failed_jobs_than_one_call_takes(shell: Shell) -> None:
    """They fail again at once, and that must come to an end."""
    from semtask import Client

    assert shell("up").code == 0
    with Client(home=shell.home) as client:
        # Their program is not there: no process is needed to make 450 failures.
        jobs = client.enqueue_many([{"job_type": "x", "payload": {"command": "/nowhere"}, "tag": "many"}] * 450)
        client.wait([job.job_id for job in jobs], timeout_ms=60_000)
        said = shell("retry", "--failed", "-q")
        copies = said.out.split()
        assert said.code == 0
        assert 450 <= len(copies) <= 800
        first = {client.get_job(copy).retry_of for copy in copies[:450]}
        assert first == {job.job_id for job in jobs}


# --- ls --------------------------------------------------------------------------------------------------------------


def test_ls_by_subject_group_and_time(served: Shell) -> None:
    one = served("run", "-d", "--subject", "index:src/a", "true").id
    two = served("run", "-d", "--subject", "index:src/b", "true").id
    served("wait", one, two)
    assert served("ls", "-q", "--subject", "index:").out.split() == [two, one]
    assert served("ls", "-q", "--subject", "index:src/a").id == one
    assert served("ls", "-q", "--subject", "index:", "--since", "1h").out.split() == [two, one]
    assert served("ls", "-q", "--since", "0").out == ""
    assert served("ls", "-q", "--since", "2999-01-01").out == ""
    assert served("ls", "-q", "--group", "nobody").out == ""


def test_words_for_jobs(served: Shell) -> None:
    ids = [served("run", "-d", "--subject", f"w{n}", "true").id for n in range(3)]
    served("wait", *ids)
    assert served("show", "-q", "last").id == ids[2]
    assert served("show", "-q", "last:1").id == ids[2]
    assert served("show", "-q", "LAST:3").id == ids[0]
    assert served("wait", "-q", "@w1", "last:2").id == ids[1]
    longer = served("run", "-d", "--subject", "w1/longer", "true").id
    assert served("show", "-q", "@w1").id == ids[1]
    assert served("show", "-q", "@w1/longer").id == longer
    far = served("show", "last:99999")
    assert (far.code, "too far back" in far.err) == (4, True)
    assert served("show", "@nobody").code == 4


def test_there_is_no_job_before_the_first(shell: Shell) -> None:
    assert shell("up", "-q").code == 0
    none = shell("show", "last")
    assert (none.code, none.err) == (4, "semtask: there is no job yet; `semtask run -- COMMAND` makes one\n")
    shell("run", "-q", "true")
    assert shell("show", "-q", "last:1").code == 0
    said = shell("show", "last:2")
    assert (said.code, "last:2 is too far back, there is 1 job;" in said.err) == (4, True), said


def test_classes_of_queues(served: Shell) -> None:
    said = served("queues", "set", "back", "--class", "background")
    assert said.err.endswith("class background\n")
    rows = {q["name"]: q for q in served("queues", "--json").json_lines}
    assert rows["back"]["class"] == "background"
    kept = served("queues", "set", "back", "--concurrency", "3", "--json").json
    assert (kept["class"], kept["concurrency"]) == ("background", 3)
    assert "background" in served("queues").out
