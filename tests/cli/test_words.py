"""The words of the command line as values, and values as words."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

from semtask.cli import arguments, render
from semtask.cli.arguments import deadline, moment, parse_duration, past, task_arguments, variables
from semtask.cli.exit_codes import exit_code
from semtask.cli.failure import describe
from semtask.cli.session import Session
from semtask.cli.tasks import in_words
from semtask.client.messages import Message
from semtask.model.state import FINAL, EndCause, State
from semtask.protocol.jobs import JobView


def message(fields: dict[str, Any]) -> Any:
    """An answer as the command line has it."""
    return Message(fields)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("90s", 90_000),
        ("1h30m", 5_400_000),
        ("1h 30m", 5_400_000),
        ("500ms", 500),
        ("1.5", 1500),
        ("0", 0),
        ("2D", 172_800_000),
        ("1m500ms", 60_500),
    ],
)
def test_durations(text: str, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize("text", ["", "s", "1x", "-1s", "1h30", "5 minutes", "1e3", "٣s", "1s2", "9" * 50, "nan"])
def test_no_durations(text: str) -> None:
    assert parse_duration(text) is None


@pytest.mark.parametrize("ms", [0, 1, 999, 1000, 59_999, 61_000, 3_600_000, 90_061_000, 10**12])
def test_a_shown_duration_is_close_to_the_value(ms: int) -> None:
    shown = parse_duration(render.duration(ms).replace(" ", ""))
    assert shown is not None
    assert abs(shown - ms) <= max(60, ms * 0.05)


def test_times() -> None:
    assert moment("2026-11-23T18:00Z") == int(datetime(2026, 11, 23, 18, tzinfo=UTC).timestamp()) * 1000
    assert moment("2026-11-23T18:00+02:00") == int(datetime(2026, 11, 23, 16, tzinfo=UTC).timestamp()) * 1000
    later = moment("00:00") / 1000 - time.time()
    assert 0 < later <= 25 * 3600


@pytest.mark.parametrize(
    ("now", "text", "following", "last"),
    [
        ("2027-03-27T18:00Z", "18:00", "2027-03-28T16:00Z", "2027-03-27T17:00Z"),  # of another offset
        ("2027-10-30T17:00Z", "18:00", "2027-10-31T17:00Z", "2027-10-30T16:00Z"),
        ("2027-03-28T00:30Z", "02:30", "2027-03-28T01:30Z", "2027-03-27T01:30Z"),  # 02:30 is 03:30 there
        ("2027-10-30T23:00Z", "02:30", "2027-10-31T00:30Z", "2027-10-30T00:30Z"),  # the first of two
        ("2027-10-31T01:10Z", "02:40", "2027-10-31T01:40Z", "2027-10-30T00:40Z"),  # in the second one
        ("2028-02-28T12:00Z", "11:00", "2028-02-29T10:00Z", "2028-02-28T10:00Z"),
    ],
)
def test_a_time_of_day_where_daylight_saving_begins_and_ends(
    monkeypatch: pytest.MonkeyPatch, now: str, text: str, following: str, last: str
) -> None:
    monkeypatch.setattr(arguments, "now_ms", lambda: datetime.fromisoformat(now).timestamp() * 1000)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        found = moment(text), past(text)
    time.tzset()
    assert [datetime.fromtimestamp(ms / 1000, UTC) for ms in found] == list(
        map(datetime.fromisoformat, (following, last))
    )


@pytest.mark.parametrize("text", ["", "tomorrow", "25:00", "12:60", "2026-13-01", "99999-01-01", "1960-01-01T00:00Z"])
def test_no_times(text: str) -> None:
    with pytest.raises(click.BadParameter):
        moment(text)


def test_a_deadline_is_a_time_or_how_long_from_now() -> None:
    now = time.time() * 1000
    assert deadline("90s") - now == pytest.approx(90_000, abs=2000)
    assert deadline("2099-01-01T00:00Z") == moment("2099-01-01T00:00Z")
    assert 0 < deadline("00:00") - now <= 25 * 3_600_000


def test_a_past_time_is_one_or_how_long_ago() -> None:
    now = time.time() * 1000
    assert now - past("90s") == pytest.approx(90_000, abs=2000)
    assert past("2026-01-01T00:00Z") == moment("2026-01-01T00:00Z")
    for text in ("00:00", "12:00", "23:59"):
        assert 0 <= now - past(text) <= 25 * 3_600_000
    assert past("999999d") == 0


@pytest.mark.parametrize("text", ["", "soon", "-1s", "25:00", "yesterday"])
@pytest.mark.parametrize("kind", [deadline, past])
def test_neither_a_time_nor_a_duration(kind: Callable[[str], int], text: str) -> None:
    with pytest.raises(click.BadParameter, match="neither a duration"):
        kind(text)


def test_variables() -> None:
    assert variables(["A=1", "B", "C=x=y", "D="], {"B": "2"}) == {"A": "1", "B": "2", "C": "x=y", "D": ""}


@pytest.mark.parametrize("word", ["MISSING", "=x", ""])
def test_bad_variables(word: str) -> None:
    with pytest.raises(click.BadParameter):
        variables([word], {})


def test_task_arguments(tmp_path: Path) -> None:
    assert task_arguments(["n=5", "s=abc", 'q="5"', "l=[1,2]", "e="], None) == {
        "n": 5,
        "s": "abc",
        "q": "5",
        "l": [1, 2],
        "e": "",
    }
    assert task_arguments([], None) == {}
    assert task_arguments(["x=NaN"], None) == {"x": "NaN"}
    file = tmp_path / "p.json"
    file.write_text('{"a": 1}')
    assert task_arguments([], f"@{file}") == {"a": 1}


SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "when": {"type": "string", "format": "date-time"},
        "number": {"type": "integer"},
        "real": {"type": "number"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "color": {"$ref": "#/$defs/Color"},
        "point": {"$ref": "#/$defs/Point"},
        "words": {"type": "array", "items": {"type": "string"}},
        "flag": {"type": "boolean"},
        "any": {},
    },
    "$defs": {"Color": {"enum": ["1", "red"]}, "Point": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("text=5", "5"),
        ("text=true", "true"),
        ("text=null", "null"),
        ("text=[1]", "[1]"),
        ('text="5"', "5"),
        ("text=plain", "plain"),
        ("when=2026", "2026"),
        ("number=5", 5),
        ("number=five", "five"),  # the daemon says what is wrong with it
        ("number=true", True),
        ("real=5", 5),
        ("real=1e3", 1000.0),
        ("maybe=5", "5"),
        ("maybe=null", None),
        ("either=5", 5),
        ("either=x", "x"),
        ("color=1", "1"),
        ("color=red", "red"),
        ('point={"x":1}', {"x": 1}),
        ('words=["1"]', ["1"]),
        ("flag=false", False),
        ("any=5", 5),
        ("unknown=5", 5),
    ],
)
def test_the_schema_of_a_task_tells_text_from_json(word: str, value: Any) -> None:
    name = word.partition("=")[0]
    found = task_arguments([word], None, SCHEMA)
    assert found == {name: value}
    assert type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text", "string"),
        ("when", "string (date-time)"),
        ("maybe", "string | null"),
        ("color", '"1" | "red"'),
        ("point", "Point"),
        ("words", "array of string"),
        ("any", "any"),
    ],
)
def test_a_schema_in_words(name: str, words: str) -> None:
    properties: Any = SCHEMA["properties"]
    assert in_words(properties[name], SCHEMA) == words


@pytest.mark.parametrize(
    ("progress", "short", "long"),
    [
        (None, "", None),
        ({"done": 3.0, "total": None, "text": None}, "3", "3"),
        ({"done": 3.0, "total": 12.0, "text": "parsing"}, "25 %", "3 of 12 (25 %): parsing"),
        ({"done": 13.0, "total": 12.0, "text": None}, "100 %", "13 of 12 (100 %)"),
        ({"done": 0.5, "total": 0.0, "text": None}, "0.5", "0.5"),
    ],
)
def test_progress(progress: dict[str, Any] | None, short: str, long: str | None) -> None:
    job = live(state="RUNNING", progress=progress)
    assert render.outcome(job) == short
    assert render.progress_of(job) == long


def test_an_exception_without_a_traceback_names_its_causes() -> None:
    cause = {"type": "KeyError", "message": "'x'", "traceback": "", "cause": None}
    error = {"type": "ValueError", "message": "two\nlines", "traceback": "", "cause": cause}
    assert render.exception_lines(message(error)) == ["ValueError: two", "lines", "caused by", "KeyError: 'x'"]
    assert render.exception_lines(message({**error, "traceback": "a\nb\n"})) == ["a", "b"]


@pytest.mark.parametrize("payload", ["[1]", "nonsense", '{"a": NaN}', "@/nowhere", "5"])
def test_bad_payloads(payload: str) -> None:
    with pytest.raises(click.BadParameter):
        task_arguments([], payload)


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\rb", "\x07", "\x9b31m", "\u202eevil", "a\nb", "\x7f"])
def test_nothing_of_a_job_steers_the_terminal(hostile: str) -> None:
    shown = render.printable(hostile)
    assert shown.isprintable()
    assert render.printable("plain äöü 漢字") == "plain äöü 漢字"


def test_times_in_json_are_iso() -> None:
    job: dict[str, Any] = {"job_id": "x", "created_at": 1_700_000_000_123, "finished_at": None, "grace_ms": 5000}
    job["attempts_list"] = [{"claim_no": 1, "started_at": 1_700_000_000_000, "finished_at": None}]
    shown = render.job_json(message(job))
    assert shown["schema"] == "job.v1"
    assert shown["created_at"] == "2023-11-14T22:13:20.123Z"
    assert shown["finished_at"] is None
    assert shown["attempts_list"][0]["started_at"] == "2023-11-14T22:13:20.000Z"


def test_columns_align_and_colours_have_no_width() -> None:
    lines = render.table(["A", "B", "C"], [["x", "\x1b[31mRED\x1b[0m", "1"], ["yyy", "Z", "2"]], right=frozenset())
    assert lines[0] == "A    B    C"
    assert lines[1] == "x    \x1b[31mRED\x1b[0m  1"
    assert lines[2] == "yyy  Z    2"


NOW = 1_700_000_000_000


def live(**fields: Any) -> Any:
    defaults = {
        "job_id": "01a207a1-0000-7000-8000-0000deadbeef", "state": "SCHEDULED", "claim_no": 1, "attempts": 1,
        "max_attempts": 5, "failures": 1, "crashes": 0, "interruptions": 0, "finished_at": None,
        "run_at": NOW + 3000, "error": "exit code 3", "started_at": NOW - 1000, "end_cause": None,
    }  # fmt: skip
    return message({**defaults, **fields})


@pytest.mark.parametrize(
    ("job", "shown"),
    [
        (live(), "2 of 5"),
        (live(state="RUNNING"), "2 of 5"),
        (live(finished_at=NOW, state="FAILED", attempts=5), "5 of 5"),
        (live(attempts=0, max_attempts=1), "1"),
        (live(attempts=0, max_attempts=0), "1"),
        (live(attempts=3, failures=1, interruptions=2), "4 of 7"),
        (live(attempts=1, failures=0, crashes=1, max_attempts=1), "2 of 2"),
    ],
)
def test_which_attempt_it_is(job: JobView, shown: str) -> None:
    assert render.attempt_of(job) == shown


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (live(), "attempt 1 ended (exit code 3); attempt 2 of 5 in 3.0 s"),
        (live(state="QUEUED"), "attempt 1 ended (exit code 3); attempt 2 of 5 when its turn comes"),
        (live(state="RUNNING", claim_no=2), "attempt 2 has begun"),
        (live(error="a\x1b[2Jb"), "attempt 1 ended (a\\x1b[2Jb); attempt 2 of 5 in 3.0 s"),
    ],
)
def test_what_follows_an_attempt(job: JobView, text: str) -> None:
    assert render.next_attempt(job, 1, NOW) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": "SUPERSEDED", "superseded_by": "x" * 28 + "cafecafe"}, "was superseded by cafecafe after 1.0 s"),
        ({"state": "SUPERSEDED"}, "was superseded by another job"),
        ({"state": "SKIPPED_TTL", "ttl_ms": 5000}, "was skipped: it did not start within its ttl of 5.0 s"),
        ({"state": "SKIPPED_DEADLINE"}, "was skipped: its deadline passed before it started"),
        ({"state": "FAILED", "end_cause": "timeout", "timeout_ms": 2000}, "ran longer than its timeout of 2.0 s"),
        ({"state": "FAILED", "end_cause": "exit_code", "exit_code": 3, "attempts": 5}, "in attempt 5 of 5"),
        ({"state": "DONE", "attempts": 2}, "succeeded in 1.0 s, in attempt 2 of 5"),
    ],
)
def test_how_a_job_ended(fields: dict[str, Any], text: str) -> None:
    assert text in render.sentence(live(finished_at=NOW, **fields))


def ended(**fields: Any) -> Any:
    return message({"state": "FAILED", "end_cause": None, "exit_code": None, "signal": None, **fields})


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (ended(state="DONE", end_cause="success", exit_code=0), 0),
        (ended(end_cause="exit_code", exit_code=3), 3),
        (ended(end_cause="signal", signal=9), 137),
        (ended(end_cause="exception"), 1),
        (ended(end_cause="timeout", signal=15), 124),
        (ended(end_cause="interrupted", exit_code=0), 125),
        (ended(state="CANCELLED", end_cause="cancelled", exit_code=0), 143),
        (ended(state="SKIPPED_TTL", end_cause="ttl"), 75),
        (ended(end_cause="spawn_failed", payload={"command": "no-such-program", "env": {"PATH": "/bin"}}), 127),
        (ended(end_cause="spawn_failed", payload={"command": "/nowhere/x"}), 127),
        (ended(end_cause="spawn_failed", payload={"command": "/etc/passwd"}), 126),
        (ended(end_cause="spawn_failed", payload={"command": "/bin/sh"}), 125),
    ],
)
def test_the_exit_code_of_a_job(job: JobView, code: int) -> None:
    assert exit_code(job) == code


def test_every_end_but_success_has_an_exit_code() -> None:
    for state in FINAL - {State.DONE}:
        for cause in EndCause:
            assert 0 < exit_code(ended(state=str(state), end_cause=str(cause))) < 256


def test_an_unforeseen_error_is_one_line_that_names_it() -> None:
    failure = describe(ZeroDivisionError("division by zero"))
    assert not isinstance(failure, int)
    assert (failure.exit_code, failure.kind) == (1, "INTERNAL_ERROR")
    assert "ZeroDivisionError" in failure.message
    assert "SEMANTICA_DEBUG=1" in (failure.hint or "")
    assert os.linesep not in failure.message


def test_a_notice_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Session().warn("two\nlines \x1b[2J\r\x9b \u202e é")
    assert capsys.readouterr().err == "semtask: two\nlines \\x1b[2J\\r\\x9b \\u202e é\n"
