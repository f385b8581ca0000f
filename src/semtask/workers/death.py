"""Why a worker has ended, in words for people."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

from semtask.executors.shim_end import Lost
from semtask.launch.control import NO_ROOM
from semtask.launch.folder import Record
from semtask.model.app import App
from semtask.protocol.frames import PROTOCOL, Failed, Hello

_LINE = 300
_FATAL = "Fatal Python error: "
_NO_SEMTASK = ("No module named 'semtask'", "No module named semtask")

End = Record | Lost


class Death(NamedTuple):
    """`error` is one line; `tail` the end of the worker's own log since its last job began, `output` more of that.

    `max_rss_kib` is the most memory it had, 0 if that is not known. `traceback` is for those who want to know more
    about a start that failed. `no_room`: the machine could not start it now. `by_us`: the daemon killed it. `broken`:
    because it broke the protocol.
    """

    error: str
    traceback: str = ""
    tail: str = ""
    output: str = ""
    exit_code: int | None = None
    signal: int | None = None
    no_room: bool = False
    by_us: bool = False
    broken: bool = False
    max_rss_kib: int = 0


class Facts(NamedTuple):
    """What is known at the end. `hello`: it had imported the app. `killed`: why the daemon killed it."""

    app: App
    end: End
    hello: bool
    failed: Failed | None
    killed: str | None
    broken: bool
    tail: str


def judge(facts: Facts) -> Death:
    if facts.failed is not None:
        return Death(facts.failed.error, traceback=facts.failed.traceback or facts.tail, tail=facts.tail)
    if isinstance(facts.end, Record) and facts.end.wait_status is None:
        return _never_started(facts.app, facts.end)
    if isinstance(facts.end, Lost) and facts.end.had_no_room:
        return not_started("the machine had no room for another worker")
    death = _ended(facts)
    return death if facts.hello else _start_failed(facts, death)


def not_started(why: str) -> Death:
    """The machine, or this daemon, could not start it now."""
    return Death(why, no_room=True)


def refused(app: App, why: str) -> Death:
    return Death(f"the interpreter of the app {app.name!r} cannot be started: {why}")


def other_version(app: App, hello: Hello, version: str) -> str:
    return (
        f"{app.python} has semtask {hello.version}, which speaks worker protocol {hello.protocol}; this daemon is "
        f"semtask {version} with protocol {PROTOCOL}: install the same version in both, and restart the daemon"
    )


def _never_started(app: App, record: Record) -> Death:
    if record.spawn_errno in NO_ROOM:
        return not_started(record.spawn_error)
    return refused(app, record.spawn_error)


def _ended(facts: Facts) -> Death:
    code: int | None = None
    number: int | None = None
    if isinstance(facts.end, Lost):
        how = f"its worker is gone: the shim that watched it {facts.end.how}"
    else:
        status = os.waitstatus_to_exitcode(facts.end.wait_status or 0)
        if status < 0:
            number = -status
            how = f"its worker was ended by signal {number} ({_signal_name(number)})"
        else:
            code = status
            how = f"its worker ended with exit code {code}"
    if facts.killed is not None:
        how = f"its worker was killed: {facts.killed}"
    elif (fatal := _fatal_line(facts.tail)) is not None:
        how = f"{how}: {fatal}"
    return Death(
        how,
        tail=facts.tail,
        exit_code=code,
        signal=number,
        by_us=facts.killed is not None,
        broken=facts.broken,
        max_rss_kib=facts.end.max_rss_kib if isinstance(facts.end, Record) else 0,
    )


def _start_failed(facts: Facts, death: Death) -> Death:
    app = facts.app
    if any(text in facts.tail for text in _NO_SEMTASK):
        error = f"the interpreter {app.python} has no semtask; install it there: {app.python} -m pip install semtask"
    elif facts.killed is not None:
        error = f"the worker of the app {app.name!r} was killed: {facts.killed}"
    else:
        how = death.error.replace("its worker", f"the worker of the app {app.name!r}", 1)
        error = f"{how}, before it had imported {app.module}"
    last = facts.tail.rpartition("\n")[2]
    if last and last not in error and not any(text in last for text in _NO_SEMTASK):
        error = f"{error}; the last line of its log: {last[:_LINE]}"
    return death._replace(error=error, traceback=facts.tail)


def _fatal_line(text: str) -> str | None:
    """What the interpreter itself says about its end."""
    found = text.rfind(_FATAL)
    return None if found < 0 else text[found:].partition("\n")[0][:_LINE]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"
