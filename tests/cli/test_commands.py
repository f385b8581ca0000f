"""Looking at jobs and changing them; the shapes of JSON; and a table of what goes wrong."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import semtask
from semtask.cli.main import COMMANDS, cli
from tests.cli.rig import Shell
from tests.client.fake import answer, serving

SHAPES = json.loads((Path(__file__).parent / "shapes.json").read_text())

LOOSE = {
    "env": "str by name",  # the tester's own
    "pid": "int or null",  # a job may be over before it is noted
    "counters": "int by name",
    "cpu_usage": "float or null",
    "memory_usage": "float or null",
    "throttle": "active, reason, since",
    "disk": "state, reason, since, free_bytes, low_bytes",
}


def shape(value: Any) -> Any:
    """The type of every part of a JSON value: what a program that reads it relies on.

    What depends on the moment has one name for all that it can be.
    """
    if isinstance(value, dict):
        if "umask" in value:  # of a command; the rest is there if whoever runs the tests is not neutral
            value = {name: part for name, part in value.items() if name not in {"nice", "cpus", "limits"}}
        return {name: LOOSE.get(name) or shape(part) for name, part in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "null" if value is None else type(value).__name__


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_shapes_of_json_stay(served: Shell, name: str) -> None:
    served("run", "-q", "-Q", "shapes", "-t", "shapes", "--", "sh", "-c", "echo x; exit 3")
    wanted = SHAPES[name]
    for argv in wanted.get("before", []):
        assert served(*argv).code == 0
    said = served(*(word.replace("{home}", str(served.home)) for word in wanted["argv"]))
    assert said.err == "", said
    *_, last = said.json_lines
    assert shape(last) == wanted["shape"]


def enqueue(shell: Shell, *argv: str) -> str:
    return shell("run", "-d", *argv).id


def test_ls_filters(served: Shell) -> None:
    done = enqueue(served, "-t", "filters", "true")
    failed = enqueue(served, "-t", "filters", "-Q", "other", "--name", "named", "false")
    assert served("wait", done, failed).code == 0
    both = ["ls", "-q", "-t", "filters"]
    assert served(*both).out.split() == [failed, done]
    assert served(*both, "-s", "failed").id == failed
    assert served(*both, "-s", "FAILED", "-s", "done").out.split() == [failed, done]
    assert served(*both, "-Q", "other").id == failed
    assert served(*both, "--name", "named").id == failed
    assert served(*both, "-s", "running").out == ""


def test_ls_page_by_page(served: Shell) -> None:
    ids = [enqueue(served, "-t", "pages", "true") for _ in range(5)][::-1]
    first = served("ls", "-t", "pages", "--limit", "2", "--json")
    assert [job["job_id"] for job in first.json_lines] == ids[:2]
    cursor = first.err.split("--cursor ")[1].strip()
    second = served("ls", "-t", "pages", "--limit", "3", "--cursor", cursor, "--json")
    assert [job["job_id"] for job in second.json_lines] == ids[2:]
    assert second.err == ""


def test_a_list_without_a_terminal_is_tab_separated(served: Shell) -> None:
    job_id = enqueue(served, "-t", "tabs", "echo", "a\tb\x1b[2J")
    assert served("wait", job_id).code == 0
    (line,) = served("ls", "-t", "tabs").out.splitlines()
    cells = line.split("\t")
    assert (cells[0], cells[1], cells[2]) == (job_id, "DONE", "default")
    assert len(cells) == 6
    assert "\x1b" not in line


def test_ids_in_all_their_forms(served: Shell) -> None:
    job_id = enqueue(served, "true")
    for form in (job_id, job_id.upper(), job_id[-8:], job_id[-4:], job_id[-17:], "last"):
        assert served("show", "-q", form).id == job_id
    assert served("wait", "-q", "-", stdin=f"{job_id}\n{job_id}\n").id == job_id


def test_show_tells_the_story(served: Shell) -> None:
    job_id = enqueue(served, "-t", "story", "sh", "-c", "exit 7")
    served("wait", job_id)
    text = served("show", job_id, "--payload").out
    for part in (
        job_id,
        "FAILED (exit 7)",
        "sh -c 'exit 7'",
        "story",
        "attempt 1",
        "exit_code, exit code 7",
        '"umask"',
    ):
        assert part in text


def test_logs(served: Shell) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line number $i; done; echo oops >&2"
    job_id = enqueue(served, "sh", "-c", script)
    followed = served("logs", "-f", job_id)
    lines = [f"line number {i}" for i in range(1, 3001)]
    assert followed.out.splitlines() == [*lines, "oops"]
    assert served("logs", job_id, "-n", "3").out.splitlines() == [*lines[-2:], "oops"]
    assert served("logs", job_id, "-n", "2500").out.splitlines() == [*lines[-2499:], "oops"]
    assert served("logs", job_id, "-n", "0").out == ""
    assert served("logs", job_id, "-f", "-n", "1").out == "oops\n"
    long = enqueue(served, sys.executable, "-c", "print('x' * 10_000_000); print('y' * 3_000_000); print('end')")
    served("wait", long)
    assert served("logs", long, "-n", "2").out == "y" * 3_000_000 + "\nend\n"
    assert served("logs", long, "-f", "-n", "3").out == f"{'x' * 10_000_000}\n{'y' * 3_000_000}\nend\n"
    none = served("logs", job_id, "--attempt", "2")
    assert (none.code, none.err) == (
        4,
        f"semtask: job {job_id} has no attempt 2; the newest is 1; `semtask show {job_id}` lists the attempts\n",
    )
    events = served("logs", job_id, "--json").json_lines
    assert "".join(event["chunk"] for event in events).splitlines() == [*lines, "oops"]
    assert events[0]["schema"] == "log.v1"


def test_logs_of_a_job_that_never_ran_say_so(served: Shell) -> None:
    job_id = served("run", "-d", "--in", "1h", "true").out.strip()
    said = served("logs", job_id)
    assert (said.code, said.out) == (0, "")
    assert f"it was never started; `semtask show {job_id[-8:]}` says why" in said.err
    assert served("logs", "-q", job_id).err == ""
    none = served("logs", job_id, "--attempt", "1")
    assert (none.code, "has no attempt 1; it was never started" in none.err) == (4, True), none
    assert served("cancel", job_id).code == 0


def test_logs_of_a_running_job_are_what_is_there_now(served: Shell) -> None:
    with served.start("run", "sh", "-c", "echo here; sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        assert served("logs", "last").out == "here\n"
        assert served("cancel", "last").code == 0


def test_wait(served: Shell) -> None:
    slow = enqueue(served, "sleep", "60")
    bad = enqueue(served, "sh", "-c", "exit 9")
    missing = enqueue(served, "no-such-program")
    assert served("wait", bad).code == 0
    assert served("wait", "--exit-status", bad).code == 9
    assert served("wait", "--exit-status", missing).code == 127
    waited = served("wait", "--any", slow, bad)
    assert (waited.code, len(waited.out.splitlines())) == (0, 1)
    late = served("wait", slow, bad, "--timeout", "200ms")
    assert (late.code, len(late.out.splitlines())) == (124, 1)
    assert "1 of 2 jobs have not ended" in late.err
    assert served("cancel", slow).code == 0
    assert served("wait", "--exit-status", slow).code == 143


def test_wait_for_more_jobs_than_one_call_takes(shell: Shell) -> None:
    assert shell("up").code == 0
    later = {"job_type": "x", "payload": {"command": "true"}, "schedule": {"type": "AFTER", "delay_ms": 3_600_000}}
    with semtask.Client(home=shell.home) as client:
        jobs = client.enqueue_many([{**later, "tag": "first"}] * 1000 + [{**later, "tag": "last"}])
    ids = "\n".join(job.job_id for job in jobs)
    assert shell("cancel", "--tag", "first").code == 0
    late = shell("wait", "-", "--timeout", "50ms", stdin=ids)
    assert (late.code, len(late.out.splitlines())) == (124, 1000)
    assert "1 of 1001 jobs have not ended" in late.err
    any_of = shell("wait", "-", "--any", stdin=ids)
    assert (any_of.code, any_of.out) == (2, "")
    assert "1001 jobs are too many for --any; at most 1000" in any_of.err
    assert shell("cancel", "--tag", "last").code == 0
    assert shell("wait", "-q", "-", stdin=ids).out.split() == [job.job_id for job in jobs]


def test_retry_all_that_failed_and_were_not_retried_yet_however_many(shell: Shell) -> None:
    """Of the queue that is named; more than one call of the API takes."""
    assert shell("up").code == 0
    missing = {"job_type": "x", "payload": {"command": "/missing"}}
    with semtask.Client(home=shell.home) as client:
        many = client.enqueue_many([{**missing, "queue": "many"}] * 205)
        few = client.enqueue_many([{**missing, "queue": "few"}] * 2)
    assert shell("wait", "-q", "-", stdin="\n".join(job.job_id for job in [*many, *few])).code == 0
    for queue, failed in (("few", few), ("many", many)):
        assert shell("pause", queue).code == 0  # so that the copies do not fail as well meanwhile
        copies = shell("retry", "--failed", "--queue", queue).out.split()
        with semtask.Client(home=shell.home) as client:
            assert sorted(str(client.get_job(copy).retry_of) for copy in copies) == sorted(job.job_id for job in failed)
        assert "no failed job to retry" in shell("retry", "--failed", "--queue", queue).err


def test_cancel(served: Shell) -> None:
    one, two, three = (enqueue(served, "-t", "crowd", "--in", "1h", "true") for _ in range(3))
    assert served("cancel", one).code == 0
    again = served("cancel", one, two)
    assert again.code == 5
    assert "already ended: CANCELLED" in again.err
    assert served.job(two)["state"] == "CANCELLED"
    assert served("cancel", "--tag", "crowd", "--json").json["cancelled_count"] == 1
    assert served.job(three)["state"] == "CANCELLED"
    assert served("cancel", "--tag", "crowd", "--json").json == {
        "schema": "cancelled.v1", "cancelled": False, "cancelled_count": 0, "job_id": None, "ended_as": None,
    }  # fmt: skip


def test_queues(served: Shell) -> None:
    assert served("pause", "q-one", "q-two").code == 0
    held = enqueue(served, "-Q", "q-one", "true")
    rows = {q["name"]: q for q in served("queues", "--json").json_lines}
    assert (rows["q-one"]["paused"], rows["q-one"]["queued"], rows["q-two"]["paused"]) == (True, 1, True)
    assert "paused" in served("show", held).out
    assert (
        served("queues", "set", "q-one", "--concurrency", "7").err
        == "semtask: queue q-one runs up to 7 jobs at a time, class normal\n"
    )
    assert "runs up to 1 job at a time" in served("queues", "set", "q-two", "--concurrency", "1").err
    assert served("resume", "q-one").code == 0
    assert served("wait", held).code == 0
    rows = {q["name"]: q for q in served("queues", "--json").json_lines}
    assert (rows["q-one"]["paused"], rows["q-one"]["concurrency"]) == (False, 7)
    assert served("queues", "set", "q-one", "--concurrency", "default", "--json").json["concurrency"] != 7
    assert "q-one" in served("queues", "-q").out.split()


def test_a_task_without_an_app_waits_and_says_so(served: Shell) -> None:
    job_id = served("enqueue", "mail.send", "--arg", "to=a@b", "--arg", "n=3").id
    job = served.job(job_id)
    assert (job["execution_mode"], job["state"], job["payload"]) == ("IN_PROCESS", "QUEUED", {"to": "a@b", "n": 3})
    assert job["waiting"]["reason"] == "no_app"
    piped = served("enqueue", "mail.send", "--payload", "-", stdin='{"to": "c"}').id
    assert served.job(piped)["payload"] == {"to": "c"}
    assert served("cancel", job_id, piped).code == 0


def test_output_can_be_chosen_by_the_environment(served: Shell) -> None:
    assert served("status", env={"SEMANTICA_OUTPUT": "json"}).json["schema"] == "status.v1"
    assert served("status", env={"SEMANTICA_OUTPUT": "quiet"}).out == ""
    assert served("--json", "status").json["schema"] == "status.v1"
    said = served("status", env={"SEMANTICA_OUTPUT": "yaml"})
    assert (said.code, said.out) == (2, "")
    assert "table, json or quiet" in said.err


def test_the_status_says_why_background_work_waits(tmp_path: Path) -> None:
    """A machine cannot be made busy on demand, so the answer comes from a scripted daemon."""
    with serving(tmp_path / "home" / "run") as fake:
        since = round(time.time() * 1000) - 90_000
        stats = {
            "pid": 1, "version": semtask.__version__, "uptime_seconds": 5.0, "accepting": True, "db_size_bytes": 1,
            **dict.fromkeys([f"{s}_jobs" for s in ("total", "running", "queued", "scheduled", "done", "failed")], 0),
            "system": {"running_processes": 0, "max_processes": 8}, "queues": [],
            "throttle": {"active": True, "reason": "CPU 97 %", "since": since},
        }  # fmt: skip
        fake.script = [answer(stats), answer({"apps": []}), answer({"workers": []})] * 2
        shell = Shell(tmp_path / "home")
        told = [line for line in shell("status").out.splitlines() if "background" in line]
        assert len(told) == 1
        assert re.fullmatch(r"background work waits, for 1m3\ds by now: CPU 97 %", told[0])
        assert shell("status", "--json").json["throttle"]["since"].endswith("Z")


def test_settings(served: Shell, tmp_path: Path) -> None:
    shown = served("config", "show", "--origin", "--json").json
    assert shown["settings"]["max_processes"] == 8
    assert shown["origin"]["max_processes"] == "the environment"
    assert shown["origin"]["rpc_port"] == "default"
    checked = served("config", "validate", env={"SEMANTICA_MAX_PROCESES": "3"})
    assert checked.code == 0
    assert (
        checked.err == "semtask: SEMANTICA_MAX_PROCESES is read by nothing (did you mean 'SEMANTICA_MAX_PROCESSES'?)\n"
    )
    later = served("config", "validate", env={"SEMANTICA_STORE": "postgresql://x"})
    assert later.err == "semtask: SEMANTICA_STORE is not served by this version\n"
    (tmp_path / "semantica.toml").write_text("max_proceses = 3")
    wrong = served("config", "validate", cwd=tmp_path)
    assert wrong.code == 2
    assert "did you mean 'max_processes'" in wrong.err
    assert served("config", "show", env={"SEMANTICA_MAX_PROCESSES": "many"}).code == 2


def test_settings_of_a_project_that_only_the_daemon_reads(shell: Shell) -> None:
    """They have no effect, and `config validate` says so."""
    project = shell.home.parent / "project"
    project.mkdir()
    (project / "semantica.toml").write_text("queue_concurrency = 17\nmax_processes = 3\nautostart = true\n")
    assert shell("run", "true", cwd=project).code == 0
    (queue,) = shell("queues", "--json").json_lines
    assert queue["concurrency"] != 17
    del shell.env["SEMANTICA_MAX_PROCESSES"]
    checked = shell("config", "validate", cwd=project)
    assert checked.code == 0
    first, second = checked.err.splitlines()
    assert first.startswith(f"semtask: queue_concurrency in {project / 'semantica.toml'} has no effect")
    assert "~/.config/semtask/config.toml" in first
    assert "max_processes" in second
    as_json = shell("config", "validate", "--json", cwd=project).json
    assert [found["name"] for found in as_json["without_effect"]] == ["queue_concurrency", "max_processes"]
    # The daemon of a home below the project does read it.
    inside = {"SEMANTICA_HOME": str(project / ".semtask")}
    assert shell("config", "validate", cwd=project, env=inside).err == ""


def test_the_schema_of_the_settings_takes_what_the_settings_take(served: Shell) -> None:
    schema = served("config", "schema").json
    shown = served("config", "show", "--json").json["settings"]
    assert set(schema["properties"]) == set(shown)
    assert schema["additionalProperties"] is False
    kinds: dict[str, Any] = {
        "integer": int,
        "number": (int, float),
        "string": str,
        "array": list,
        "boolean": bool,
        "object": dict,
    }
    for name, value in shown.items():
        rule = schema["properties"][name]
        assert rule["description"]
        if value is not None:
            assert value in rule["enum"] if "enum" in rule else isinstance(value, kinds[rule["type"]]), name
        if rule.get("type") in {"integer", "number"}:
            assert rule["minimum"] <= value <= rule["maximum"]
    too_much = str(schema["properties"]["rpc_port"]["maximum"] + 1)
    assert served("config", "validate", env={"SEMANTICA_RPC_PORT": too_much}).code == 2
    assert served("config", "schema", "--json").json == schema


UNKNOWN = "01a207a1-0000-7000-8000-000000000000"
BAD: list[tuple[list[str], int, str]] = [
    (["nonsense"], 2, "no such command 'nonsense'"),
    (["stauts"], 2, "status"),
    (["ls", "--nonsense"], 2, "--nonsense"),
    (["run"], 2, "COMMAND"),
    (["run", "--"], 2, "COMMAND"),
    (["run", "--priority", "101", "true"], 2, "101"),
    (["run", "--priority", "high", "true"], 2, "high"),
    (["run", "-Q", "no spaces", "true"], 2, "queue"),
    (["run", "-Q", "", "true"], 2, "queue"),
    (["run", "--env", "=x", "true"], 2, "NAME=VALUE"),
    (["run", "--env", "NOT_SET_ANYWHERE", "true"], 2, "NOT_SET_ANYWHERE is not set"),
    (["run", "--cwd", "/nowhere", "true"], 2, "/nowhere"),
    (["run", "--in", "soon", "true"], 2, "1h30m"),
    (["run", "--at", "soon", "true"], 2, "18:00"),
    (["run", "--at", "18:00", "--in", "1s", "true"], 2, "exclude"),
    (["run", "--grace", "61s", "true"], 2, "at most 60 s"),
    (["run", "--on-interrupt", "maybe", "true"], 2, "requeue"),
    (["run", "--name", "x" * 129, "true"], 2, "--name: expected"),
    (["run", "--retries", "-1", "true"], 2, "-1"),
    (["run", "--retries", "1000", "true"], 2, "999"),
    (["run", "--retries", "many", "true"], 2, "many"),
    (["run", "--retry-base", "soon", "true"], 2, "1h30m"),
    (["run", "--retry-base", "2h", "--retry-max", "1h", "true"], 2, "`--retry-max`"),
    (["run", "--retry-base", "2d", "true"], 2, "'2d' is too long; at most 24 h"),
    (["run", "--backoff", "0.5", "true"], 2, "0.5"),
    (["run", "--backoff", "nan", "true"], 2, "no number from 1 to 1000"),
    (["run", "--timeout", "0", "true"], 2, "no time at all"),
    (["run", "--timeout", "9999d", "true"], 2, "'9999d' is too long; at most 365 d"),
    (["run", "--timeout", "-1s", "true"], 2, "-1s"),
    (["run", "--deadline", "tomorrow", "true"], 2, "neither a duration"),
    (["run", "--deadline", "2020-01-01", "true"], 2, "'2020-01-01' is over: the job could never run"),
    (["run", "--in", "2h", "--deadline", "1h", "true"], 2, "could never run"),
    (["run", "--deadline", "0", "true"], 2, "could never run"),
    (["run", "--ttl", "0", "true"], 2, "no time at all"),
    (["run", "--idempotency-key", "", "true"], 2, "--idempotency-key: expected"),
    (["run", "--subject", "", "true"], 2, "--subject: expected"),
    (["run", "--on-duplicate", "join", "true"], 2, "give a `--subject`"),
    (["run", "--subject", "s", "--on-duplicate", "new", "true"], 2, "supersede_running"),
    (["enqueue", "t", "--retries", "x"], 2, "x"),
    (["run", "-d", "-t", "", "true"], 2, "--tag: expected"),
    (["run", ""], 2, "payload.command"),
    (["enqueue"], 2, "TASK"),
    (["enqueue", "t", "--arg", "novalue"], 2, "NAME=VALUE"),
    (["enqueue", "t", "--payload", "{"], 2, "no JSON"),
    (["enqueue", "t", "--payload", "[1]"], 2, "JSON object"),
    (["enqueue", "t", "--payload", "@/nowhere"], 2, "/nowhere"),
    (["enqueue", "t", "--payload", "{}", "--arg", "a=1"], 2, "exclude"),
    (["show", UNKNOWN], 4, UNKNOWN),
    (["show", "ffffffffffff"], 4, "ffffffffffff"),
    (["show", "abc"], 2, "last 4 or more"),
    (["show", "xyzw"], 2, "no job id"),
    (["show"], 2, "ID"),
    (["logs", UNKNOWN], 4, UNKNOWN),
    (["logs", "-f", UNKNOWN], 4, UNKNOWN),
    (["wait", UNKNOWN], 4, UNKNOWN),
    (["cancel", UNKNOWN], 4, UNKNOWN),
    (["cancel"], 2, "--tag"),
    (["cancel", "--tag", "a", "--group", "b"], 2, "either"),
    (["ls", "-s", "sleeping"], 2, "sleeping"),
    (["ls", "--limit", "0"], 2, "0"),
    (["ls", "--cursor", "nonsense"], 2, "cursor"),
    (["ls", "--since", "soon"], 2, "neither a duration"),
    (["ls", "--watch"], 2, "terminal"),
    (["ls", "--subject", "x" * 513], 2, "--subject: expected"),
    (["ls", "-Q", "a.b"], 2, "--queue: expected letters"),
    (["show", "@"], 2, "@KEY"),
    (["show", "@nobody"], 4, "nobody"),
    (["show", "last:0"], 2, "last:2"),
    (["show", "last:99999"], 4, "there "),
    (["logs"], 2, "--daemon"),
    (["logs", "--daemon", "last"], 2, "--daemon goes with"),
    (["logs", "--daemon", "--stderr"], 2, "--daemon goes with"),
    (["logs", "last", "--since", "1h"], 2, "carries no times"),
    (["retry"], 2, "--failed"),
    (["retry", "last", "--failed"], 2, "either"),
    (["retry", "--tag", "x"], 2, "--failed"),
    (["retry", "--failed", "--tag", "x", "--queue", "y"], 2, "one of"),
    (["retry", UNKNOWN], 4, UNKNOWN),
    (["gc", "now"], 2, "now"),
    (["db", "rollback"], 2, "--to"),
    (["db", "rollback", "--to", "-1"], 2, "-1"),
    (["db", "nonsense"], 2, "nonsense"),
    (["completion"], 2, "Choose from: bash, zsh, fish"),
    (["completion", "tcsh"], 2, "tcsh"),
    (["config", "nonsense"], 2, "nonsense"),
    (["doctor", "nonsense"], 2, "nonsense"),
    (["queues", "set", "q"], 2, "--concurrency"),
    (["queues", "set", "q", "--class", "slow"], 2, "background"),
    (["pause"], 2, "QUEUE"),
    (["pause", "no spaces"], 2, "queue"),
    (["queues", "set", "q", "--concurrency", "0"], 2, "concurrency"),
    (["queues", "set", "q", "--concurrency", "many"], 2, "many"),
    (["queues", "nonsense"], 2, "nonsense"),
]


@pytest.mark.parametrize(("argv", "code", "said"), BAD, ids=[" ".join(argv)[:40] for argv, _, _ in BAD])
def test_bad_input_is_one_line_that_names_it(served: Shell, argv: list[str], code: int, said: str) -> None:
    before = served("status", "--json").json["total_jobs"]
    failed = served(*argv)
    assert (failed.code, failed.out) == (code, ""), failed
    assert failed.err.startswith("semtask: ")
    assert len(failed.err.splitlines()) == 1, failed.err
    assert said in failed.err
    assert served("status", "--json").json["total_jobs"] == before


@pytest.mark.parametrize(("argv", "code", "said"), BAD[::4])
def test_with_json_the_error_is_json(served: Shell, argv: list[str], code: int, said: str) -> None:
    failed = served("--json", *argv)
    assert (failed.code, failed.err) == (code, "")
    error = failed.json["error"]
    assert error["exit_code"] == code
    assert said in error["message"]
    assert set(error) == {"code", "kind", "message", "hint", "data", "exit_code"}


def test_words_that_are_not_utf8(served: Shell) -> None:
    said = served("run", "echo", b"\xff\xfe")
    assert said.code == 2
    assert "argument 3" in said.err
    assert "UTF-8" in said.err
    variable = served("run", "true", env={"LC_ALL": os.fsdecode(b"\xff")})
    assert variable.code == 2
    assert "LC_ALL" in variable.err


def test_an_ambiguous_end_of_an_id_lists_what_fits(tmp_path: Path) -> None:
    """Two ids with one ending are rare, so the answer comes from a scripted daemon."""
    ids = [f"01a207a1-0000-7000-8000-00000000{n}abcd" for n in ("1111", "2222")]
    shell = Shell(tmp_path / "home")
    with serving(shell.home / "run") as fake:
        fake.script = [answer({"items": [{"job_id": job_id} for job_id in ids], "next_cursor": None})]
        said = shell("show", "abcd")
    assert (said.code, said.out) == (2, "")
    assert all(job_id in said.err for job_id in ids)
    assert fake.requests[0]["params"]["filter"] == {"id_suffix": "abcd"}


def test_json_and_quiet_exclude_each_other(served: Shell) -> None:
    said = served("--json", "-q", "ls")
    assert (said.code, said.json["error"]["kind"]) == (2, "USAGE")


def test_a_traceback_only_when_asked_for(served: Shell) -> None:
    plain = served("show", UNKNOWN)
    assert "Traceback" not in plain.err
    debug = served("show", UNKNOWN, env={"SEMANTICA_DEBUG": "1"})
    assert "Traceback" in debug.err
    assert debug.code == 4


def test_version(served: Shell) -> None:
    assert served("version").out == served("--version").out == f"semtask {semtask.__version__}\n"


def test_help_of_every_command(served: Shell) -> None:
    listed = served("--help").out
    for name in COMMANDS:
        assert f"\n  {name}" in listed
        said = served(name, "-h")
        assert (said.code, said.err) == (0, "")
        assert said.out.startswith(f"Usage: semtask {name}")
    assert served().out == listed


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, f"{path} {name}")


@pytest.mark.parametrize(("path", "command"), list(walk(cli, "semtask")), ids=str)
def test_every_command_and_option_says_what_it_is_for(path: str, command: click.Command) -> None:
    assert command.help
    first = command.help.strip().splitlines()[0]
    assert len(first) < 130
    assert first[0].isupper()
    assert {"--json", "--quiet", "--home", "--color"} <= {name for p in command.params for name in p.opts}
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, f"{path} {option.opts}"
            assert option.help.endswith((".", "...", ",")), f"{path} {option.opts}: {option.help}"


def test_the_list_of_commands_is_that_of_the_modules() -> None:
    for name, (_, line) in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name
        assert line.endswith(".")
