"""How jobs end: results, exceptions of all kinds, and what they raise on purpose. Rows of FAULTS B8."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest

from tests.worker.rig import Rig, worker

TASKS = """
import ctypes, resource

class Evil(Exception):
    def __str__(self):
        raise RuntimeError("no str")

class Opaque(BaseException):
    def __getattribute__(self, name):
        raise ZeroDivisionError

class Nameless(type):
    def __getattribute__(cls, name):
        raise ZeroDivisionError

class Odd(Exception, metaclass=Nameless):
    pass

@app.task
def ok() -> int:
    return 1

@app.task
def anything(code: str):
    scope = dict(globals())
    exec(code, scope)
    return scope.get("result")

@app.task
def deep() -> int:
    def f(n): return f(n + 1) + 1
    return f(0)

@app.task
def number() -> int:
    return "one"

@app.task
def chain() -> None:
    def inner(): raise KeyError("first")
    try:
        try:
            inner()
        except KeyError as error:
            raise ValueError("second") from error
    except ValueError:
        raise RuntimeError("third")

@app.task
def no_memory() -> None:
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (32 << 20), resource.RLIM_INFINITY))
    kept = []
    while True:
        kept.append(bytearray(1 << 20))
"""

LONG_NAME = f"m.{'E' * 248}\n[... 9501 characters left out ...]\n{'E' * 250}"

# code, end, type, message
RAISED = [
    ("raise ValueError('bad')", "failed", "ValueError", "bad"),
    ("raise SystemExit(0)", "failed", "SystemExit", "0"),
    ("sys.exit(3)", "failed", "SystemExit", "3"),
    ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt", ""),
    ("raise GeneratorExit", "failed", "GeneratorExit", ""),
    ("raise StopIteration(1)", "failed", "StopIteration", "1"),
    ("raise asyncio.CancelledError", "failed", "asyncio.exceptions.CancelledError", ""),
    ("raise Interrupted('cancel')", "failed", "Interrupted", "the job is being stopped: cancel"),
    ("raise Evil", "failed", "jobs.Evil", "<no message: its __str__ raised RuntimeError>"),
    ("raise Opaque", "failed", "Opaque", "<no message: to look at it raised ZeroDivisionError>"),
    ("raise Odd", "failed", "Odd", "<no message: to look at it raised ZeroDivisionError>"),
    ("raise type('E' * 9999, (Exception,), {'__module__': 'm'})", "failed", LONG_NAME, ""),
    (
        "raise ExceptionGroup('many', [ValueError(1), KeyError(2)])",
        "failed",
        "ExceptionGroup",
        "many (2 sub-exceptions)",
    ),
    ("raise ValueError('\\ud800')", "failed", "ValueError", "\\ud800"),
    ("raise Permanent('never')", "permanent", "Permanent", "never"),
    ("raise Cancel('not wanted')", "cancel", "Cancel", "not wanted"),
    ("raise Retry(reason='again')", "retry", "Retry", "again"),
    ("raise Snooze(1e300)", "failed", "ValueError", "at most a thousand years"),
    ("raise Retry(delay=10**400)", "failed", "ValueError", "at most a thousand years"),
    ("raise Snooze(-1)", "failed", "ValueError", "the delay of Snooze must be seconds or a timedelta"),
    ("os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)", "failed", "KeyboardInterrupt", ""),
    ("result = object()", "permanent", "EncodeError", "the result of jobs:anything"),
    ("result = float('nan')", "permanent", "EncodeError", "JSON has no NaN"),
    ("result = {'a': [1, float('-inf')]}", "permanent", "EncodeError", "JSON has no NaN"),
    ("result = []\nresult.append(result)", "permanent", "EncodeError", "contains itself"),
    ("result = 'x' * 200_000", "permanent", "ResultTooLarge", "has 200002 bytes; the limit is 100000 bytes"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Rig:  # type: ignore[misc]
    with worker(tmp_path_factory.mktemp("worker"), TASKS) as rig:
        yield rig


@pytest.mark.parametrize(("code", "end", "kind", "message"), RAISED, ids=[row[0][:40] for row in RAISED])
def test_whatever_is_raised_ends_the_job_and_not_the_worker(
    shared: Rig, code: str, end: str, kind: str, message: str
) -> None:
    ended = shared.run("anything", code=code)
    assert ended.exception is not None
    assert (ended.end, ended.exception.type) == (end, kind)
    assert message in ended.exception.message
    assert ended.recycle is None
    assert ended.result is None
    assert shared.run("ok").result == "1"


@pytest.mark.parametrize(
    ("code", "end", "delay_ms"),
    [
        ("raise Snooze(1.5)", "snooze", 1500),
        ("raise Retry(delay=0.25)", "retry", 250),
        ("raise Retry()", "retry", None),
        ("result = Snooze(2)", "snooze", 2000),
    ],
)
def test_a_task_says_when_it_wants_to_run_again(shared: Rig, code: str, end: str, delay_ms: int | None) -> None:
    ended = shared.run("anything", code=code)
    assert (ended.end, ended.delay_ms) == (end, delay_ms)


def test_a_result_that_is_not_of_its_type_is_refused(shared: Rig) -> None:
    ended = shared.run("number")
    assert ended.end == "permanent"
    assert ended.exception is not None
    assert "expected int, got str" in ended.exception.message


def test_traceback_and_causes_are_those_of_the_task(shared: Rig) -> None:
    ended = shared.run("chain")
    error = ended.exception
    assert error is not None
    assert error.cause is not None
    assert error.cause.cause is not None
    assert [error.type, error.cause.type, error.cause.cause.type] == ["RuntimeError", "ValueError", "KeyError"]
    assert error.cause.cause.cause is None
    assert "in inner" in error.traceback
    assert "The above exception was the direct cause" in error.traceback
    assert "semtask" not in error.traceback


def test_an_endless_chain_of_causes_and_a_huge_message_are_bounded(shared: Rig) -> None:
    code = """
error = None
for n in range(300):
    try:
        raise ValueError("x" * 5000) from error
    except ValueError as raised:
        error = raised
raise error
"""
    ended = shared.run("anything", code=code)
    error, depth = ended.exception, 0
    assert error is not None
    assert len(error.traceback) < 65 * 1024
    assert "characters left out" in error.traceback
    while error.cause is not None:
        error, depth = error.cause, depth + 1
    assert depth == 5
    assert len(shared.run("anything", code="raise ValueError('y' * 1_000_000)").exception.message) < 9000  # type: ignore[union-attr]


def test_a_recursion_without_end_fails_and_the_worker_is_replaced(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        ended = rig.run("deep")
        assert ended.end == "failed"
        assert ended.exception is not None
        assert ended.exception.type == "RecursionError"
        assert "more times" in ended.exception.traceback
        assert ended.recycle == "a job raised RecursionError"


def test_memory_at_its_end_fails_and_the_worker_is_replaced(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        call, after = rig.call("no_memory"), rig.call("ok")
        rig.give(call, after)
        ended = rig.ended(call)
        assert (ended.end, ended.recycle) == ("failed", "a job raised MemoryError")
        rig.daemon.shutdown(1)
        assert rig.rest() == []  # nothing more was begun


def test_a_large_result_is_a_file(shared: Rig) -> None:
    ended = shared.run("anything", code="result = 'x' * 5000")
    (file,) = ended.artifacts
    path = shared.artifacts / file.path
    data = path.read_bytes()
    assert (ended.end, ended.result, file.is_result) == ("done", None, True)
    assert data == b'"' + b"x" * 5000 + b'"'
    assert (file.size, file.sha256) == (5002, hashlib.sha256(data).hexdigest())
    assert file.path == f"{ended.job_id}/result.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["result.json"]
    assert len(shared.run("anything", code="result = 'x' * 998").result or "") == 1000


DEATHS = {
    "os._exit(0)": 0,
    "os._exit(3)": 3,
    "os.abort()": -signal.SIGABRT,
    "ctypes.string_at(0)": -signal.SIGSEGV,
    "os.kill(os.getpid(), signal.SIGKILL)": -signal.SIGKILL,
    "signal.raise_signal(signal.SIGTERM)": -signal.SIGTERM,
    "os.closerange(3, 50)": 1,
    "os.execv('/bin/true', ['true'])": 0,
}


@pytest.mark.parametrize("code", DEATHS)
def test_a_death_is_the_end_of_the_socket_without_a_result(tmp_path: Path, code: str) -> None:
    with worker(tmp_path, TASKS) as rig:
        rig.give(rig.call("anything", code=code), rig.call("ok"))
        assert rig.rest() == []
        assert rig.process.wait(10) == DEATHS[code]
        log = rig.own_log.read_text()
        if DEATHS[code] in {-signal.SIGABRT, -signal.SIGSEGV}:
            assert "Fatal Python error" in log
            assert "jobs.py" in log
        if "closerange" in code:
            assert "Bad file descriptor" in log


def test_a_crash_after_a_process_was_started_is_told_in_the_workers_log(tmp_path: Path) -> None:
    """The job's own log is on descriptor 2 by then, but the daemon looks for a crash in the worker's."""
    with worker(tmp_path, TASKS) as rig:
        rig.give(rig.call("anything", code="subprocess.run(['true'])\nos.abort()"))
        rig.rest()
        assert "Fatal Python error" in rig.own_log.read_text()
