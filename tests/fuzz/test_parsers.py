"""Whatever bytes a parser gets, it understands them or refuses them in its own words, and never anything else.

The reader of JSON-RPC and the parser of HTTP are attacked in tests/protocol/test_jsonrpc.py and
tests/api/test_connection.py in the same way.
"""

from __future__ import annotations

import binascii
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from semtask.cli import arguments, job_options
from semtask.cli.ids import job_ids
from semtask.client.messages import Request
from semtask.config.loading import load
from semtask.engine.signatures import Arguments
from semtask.errors import ConfigError, NotFound
from semtask.host import app_list, tokens
from semtask.host.procfs import Mark
from semtask.launch import folder
from semtask.model.redaction import hide_secrets
from semtask.protocol import frames
from semtask.protocol.frames import (
    Blocked,
    Ended,
    ExceptionInfo,
    Frames,
    Hello,
    Progress,
    ProgressInfo,
    ProtocolError,
    Recalled,
    Stop,
    TaskInfo,
    ToDaemon,
)
from tests.fuzz.mutated import mutated

fuzzed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
T = TypeVar("T")
JOB_ID = "018f0000-0000-7000-8000-000000000001"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def understood(read: Callable[[], T], refusal: type[Exception]) -> tuple[T | None, str]:
    """What was read, or the text of the refusal; any other error is a failure of the test."""
    try:
        return read(), ""
    except refusal as error:
        return None, str(getattr(error, "message", "") or error)


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)


# --- what shims leave -------------------------------------------------------------------------------------------------

RECORD = folder.Record(0, "", 1_700_000_000_000, 1_700_000_001_000, 2, 0, "", 4096, "limits")
RECORDS = [
    folder.encode_record(RECORD),
    folder.encode_record(RECORD._replace(wait_status=None, spawn_errno=2, spawn_error="no such program: \u00e4\n")),
    folder.encode_record(RECORD._replace(wait_status=9, stop="timeout")),
]


@given(mutated(RECORDS))
@fuzzed
def test_a_record_is_one_that_was_written_or_none(data: bytes) -> None:
    record = folder.decode_record(data)
    if data not in RECORDS:
        assert record is None or data.endswith(b"\n")
    else:
        assert record is not None
    if record is not None:
        assert folder.decode_record(folder.encode_record(record)) == record


@given(mutated([record.rpartition(b"crc32 ")[0] for record in RECORDS]))
@fuzzed
def test_a_record_with_a_good_checksum_may_say_anything(body: bytes) -> None:
    """As that of another version."""
    record = folder.decode_record(body + b"crc32 %08x\n" % binascii.crc32(body))
    assert record is None or isinstance(record.ended_ms, int)


MARK = Mark("a" * 36, 4026531836, 1234, 99_000_000, 77)
STARTED = [f"shim {MARK}\n".encode(), f"shim {MARK}\ncommand {MARK._replace(pid=9, pidfs_inode=None)}\n".encode()]


@given(mutated(STARTED))
@fuzzed
def test_a_note_of_a_start_names_whole_marks_or_none(data: bytes) -> None:
    for mark in folder.decode_started(data):
        assert mark is None or Mark.parse(str(mark)) == mark


@given(mutated([b"timeout 5000\n", b"cancel 0\n", b"daemon_died 2000\n"]))
@fuzzed
def test_a_stop_is_whole_or_none(data: bytes) -> None:
    stop = folder.decode_stop(data)
    assert stop is None or (stop.grace_ms >= 0 and data.endswith(b"\n"))


# --- what workers send ------------------------------------------------------------------------------------------------

TASK = TaskInfo(
    name="jobs:index",
    is_async=False,
    parameters={
        "type": "object",
        "properties": {"path": {"type": "string", "maxLength": 9}, "n": {"type": "integer"}},
        "required": ["path"],
        "$defs": {"Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}},
    },
)
SENT: list[ToDaemon] = [
    Hello(protocol=1, version="1", python="3.11", pid=7, tasks=[TASK]),
    Ended(job_id=JOB_ID, claim_no=1, end="done", ran_us=5, result='{"a": [1, 2]}'),
    Ended(
        job_id=JOB_ID,
        claim_no=2,
        end="failed",
        ran_us=5,
        exception=ExceptionInfo(type="E", message="m", cause=ExceptionInfo(type="F", message="n")),
    ),
    Progress(job_id=JOB_ID, claim_no=1, progress=ProgressInfo(done=1, total=2)),
    Blocked(job_id=JOB_ID, claim_no=1, on=[JOB_ID]),
]
STREAMS = [*map(frames.encode, SENT), b"".join(map(frames.encode, SENT))]


@given(mutated(STREAMS), st.integers(1, 400))
@fuzzed
def test_frames_are_understood_or_refused_however_they_are_cut(data: bytes, step: int) -> None:
    def read(step: int) -> tuple[list[ToDaemon], bool]:
        found: list[ToDaemon] = []
        cutter = Frames()
        try:
            for start in range(0, len(data), step):
                cutter.feed(data[start : start + step])
                for body in cutter.bodies():
                    found.append(frames.to_daemon(body))
        except ProtocolError:
            return found, True
        return found, False

    assert repr(read(step)) == repr(read(len(data) or 1)), "repr, as NaN is not itself"


TO_WORKERS = [
    frames.encode(Stop(job_id=JOB_ID, claim_no=1, reason="cancel", grace_ms=5)),
    frames.encode(Recalled(jobs=[(JOB_ID, 1)])),
]


@given(mutated(TO_WORKERS))
@fuzzed
def test_a_worker_understands_or_refuses(data: bytes) -> None:
    cutter = Frames()
    cutter.feed(data)
    found, refused = understood(lambda: [frames.to_worker(body) for body in cutter.bodies()], ProtocolError)
    assert refused or all(isinstance(message, frames.Setup | frames.Run | Stop | Recalled) for message in found or [])


WORDS_OF_SCHEMAS = st.sampled_from(
    [
        *("type", "properties", "required", "additionalProperties", "items", "prefixItems", "anyOf", "oneOf", "allOf"),
        *("$ref", "$defs", "enum", "const", "format", "pattern", "minimum", "maxLength", "multipleOf", "default", "a"),
    ]
)
VALUES_OF_SCHEMAS = st.recursive(
    st.sampled_from(["object", "string", "integer", "array", "#/$defs/a", "#/$defs", "#", "[", "uuid", "", 0, -1, None])
    | st.booleans()
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS_OF_SCHEMAS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(WORDS_OF_SCHEMAS, VALUES_OF_SCHEMAS, max_size=5), VALUES_OF_SCHEMAS)
@fuzzed
def test_whatever_a_hello_says_of_arguments_payloads_fit_or_do_not(schema: dict[str, Any], payload: Any) -> None:
    problem = Arguments({**schema, "$defs": {"a": schema}}).problem(json.dumps(payload).encode())
    assert problem is None or problem


# --- files of the user ------------------------------------------------------------------------------------------------

TOKENS = [
    b"",
    json.dumps(
        {"tokens": {"ci": {"sha256": "a" * 64, "scopes": ["read", "enqueue"], "created_at": 1, "expires_at": 9}}}
    ).encode(),
]


@given(mutated(TOKENS))
@fuzzed
def test_a_file_of_tokens_is_a_list_of_them_or_refused(home: Path, data: bytes) -> None:
    write(tokens.path_of(home), data)
    found, refused = understood(lambda: tokens.read_tokens(home), ConfigError)
    assert str(home) in refused if found is None else all(isinstance(one, tokens.Token) for one in found.values())


APPS = [
    json.dumps(
        {"apps": {"jobs": {"module": "jobs:app", "directory": "/srv/jobs", "python": "/usr/bin/python3"}}}
    ).encode(),
    b'{"apps": {}}',
]


@given(mutated(APPS))
@fuzzed
def test_a_list_of_apps_is_one_or_refused(home: Path, data: bytes) -> None:
    write(home / "apps.json", data)
    read = load({"SEMANTICA_HOME": str(home), "HOME": str(home)}, cwd=str(home))
    found, refused = understood(lambda: app_list.read_apps(read), ConfigError)
    assert "apps.json" in refused or all(os.path.isabs(app.directory) for app in found or [])


TOML = [
    b'max_processes = 8\nlog_format = "json"\nenv_allowlist = ["PATH", "LC_*"]\n',
    b'tcp = true\nrpc_port = 0\n[apps.jobs]\nmodule = "jobs:app"\ndirectory = "/srv/jobs"\npython = "python3"\n',
    b"shutdown_grace_ms = 700\nretention_days = 0\nmax_db_size_mb = 12\n",
]


@given(mutated(TOML))
@fuzzed
def test_settings_are_read_or_refused_in_one_line(home: Path, data: bytes) -> None:
    place = home / ".config" / "semtask" / "config.toml"
    place.parent.mkdir(parents=True, exist_ok=True)
    write(place, data)
    env = {"SEMANTICA_HOME": str(home), "HOME": str(home)}
    found, refused = understood(lambda: load(env, cwd=str(home)), ConfigError)
    place.unlink()
    assert found.max_processes >= 1 if found else refused and "\n" not in refused


# --- words on the command line ----------------------------------------------------------------------------------------

WORDS = [
    b"1h30m",
    b"90s",
    b"500 ms",
    b"1.5",
    b"18:00",
    b"2026-11-23T18:00",
    b"2026-11-23T18:00:01.5+02:00",
    b"3d",
    b"0",
]


@given(mutated(WORDS))
@fuzzed
def test_times_are_understood_or_refused_with_what_was_typed(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    for parse in (arguments.duration, arguments.limit, job_options.grace, arguments.moment, arguments.past):
        ms, refused = understood(functools.partial(parse, text), click.BadParameter)
        assert repr(text) in refused if ms is None else ms >= 0
    times, refused = understood(lambda: job_options.backoff(text), click.BadParameter)
    assert repr(text) in refused if times is None else times >= 1


class Asked(Exception):
    """What would be asked for is well formed."""


class Session:
    @property
    def stored(self) -> Session:
        return self

    def send(self, request: Request[Any]) -> NoReturn:
        wanted = request.params.get("filter", {})
        assert request.method == "dev.query_jobs.v1"
        assert 0 < request.params["limit"] <= 200
        assert set(wanted) <= {"id_suffix", "subject_key_prefix"}
        assert set(wanted.get("id_suffix", "")) <= set("0123456789abcdef")
        raise Asked


IDS = [JOB_ID.encode(), b"0001", b"last", b"last:3", b"@subject", b"0000-7000"]


@given(mutated(IDS))
@fuzzed
def test_a_word_for_a_job_is_asked_for_or_refused(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    assume(text != "-")  # reads ids from stdin
    try:
        [found] = job_ids(Session(), [text])  # type: ignore[arg-type]
        assert len(found) == len(JOB_ID)
    except (Asked, click.UsageError, NotFound):
        pass


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=40) | st.integers() | st.none(), max_size=5))
@fuzzed
def test_no_environment_breaks_the_hiding_of_secrets(env: dict[str, object]) -> None:
    hidden = hide_secrets(env | {"API_TOKEN": "canary"})
    assert "canary" not in hidden.values()
    assert list(hidden) == list(env | {"API_TOKEN": 0})
