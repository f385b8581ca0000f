"""Errors as people and programs see them: a message, what to do next, and an exit code."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Any

import click

from semtask import errors

USAGE = 2
NO_DAEMON = 3
NOT_FOUND = 4
REFUSED = 5
NOT_ALLOWED = 6
UNAVAILABLE = 69
TRY_LATER = 75
TIMED_OUT = 124
INTERRUPTED = 130


@dataclass(frozen=True)
class Failure:
    """`code` is the JSON-RPC code where the daemon gave one."""

    exit_code: int
    kind: str
    message: str
    hint: str | None = None
    code: int | None = None
    data: dict[str, Any] = field(default_factory=dict)


class Ended(Exception):
    """Ends the command with an exit code and nothing more to say."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def describe(error: BaseException) -> Failure | int:
    """The failure behind an exception; a plain exit code if everything has been said."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, Ended | click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, errors.RpcError):
        return _refused(error)
    if isinstance(error, errors.DaemonUnavailable):
        return Failure(NO_DAEMON, "DAEMON_UNAVAILABLE", error.message)
    if isinstance(error, errors.StartupError):
        kind = "CONFIG_ERROR" if isinstance(error, errors.ConfigError) else "STARTUP_ERROR"
        return Failure(error.exit_code, kind, error.message)
    if isinstance(error, errors.SemtaskError):
        return Failure(1, "ERROR", error.message)
    if isinstance(error, OSError):
        return Failure(1, "SYSTEM_ERROR", str(error))
    return Failure(
        1,
        "INTERNAL_ERROR",
        f"this is a bug in semtask: {type(error).__name__}: {error}",
        "SEMANTICA_DEBUG=1 shows the traceback; please report it",
    )


def report(failure: Failure | int, *, as_json: bool) -> int:
    """Say what went wrong: on stdout as JSON, or as one line on stderr. Returns the exit code."""
    if isinstance(failure, int):
        return failure
    if as_json:
        import json

        error = {
            "code": failure.code,
            "kind": failure.kind,
            "message": failure.message,
            "hint": failure.hint,
            "data": failure.data,
            "exit_code": failure.exit_code,
        }
        sys.stdout.write(json.dumps({"error": error}, separators=(",", ":")) + "\n")
        sys.stdout.flush()
    else:
        from semtask.cli.render import printable
        from semtask.cli.streams import say

        text = failure.message if failure.hint is None else f"{failure.message.rstrip('.')}; {failure.hint}"
        sys.stdout.flush()
        say(f"semtask: {printable(text)}")
    return failure.exit_code


def _usage(error: click.ClickException) -> Failure:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "semtask"
    message = " ".join(error.format_message().split())  # click writes some on several lines
    message = message[:1].lower() + message[1:] if message[1:2].islower() else message
    return Failure(error.exit_code, "USAGE", message, f"see `{path} --help`")


# parameter of the API -> the option that it is here
_OPTIONS = {
    "queue": "--queue",
    "job_type": "--name",
    "tag": "--tag",
    "chain_group_id": "--group",
    "subject_key": "--subject",
    "subject_key_prefix": "--subject",
    "on_duplicate": "--on-duplicate",
    "idempotency_key": "--idempotency-key",
    "timeout_ms": "--timeout",
    "ttl_ms": "--ttl",
    "deadline": "--deadline",
    "scheduled_at": "--at",
    "delay_ms": "--in",
    "retry_base_delay_ms": "--retry-base",
    "retry_max_delay_ms": "--retry-max",
    "concurrency": "--concurrency",
}

# class of error -> (exit code, what to do next)
_REFUSALS: dict[type[errors.RpcError], tuple[int, str | None]] = {
    errors.NotFound: (NOT_FOUND, "`semtask ls` lists the jobs"),
    errors.Conflict: (REFUSED, None),
    errors.Throttled: (TRY_LATER, "try again later"),
    errors.Unauthorized: (NOT_ALLOWED, None),
    errors.MethodNotFound: (UNAVAILABLE, "the daemon is of another version: `semtask down`, then `semtask up`"),
    errors.ValidationError: (USAGE, None),
    errors.InvalidParams: (USAGE, None),
}


def _refused(error: errors.RpcError) -> Failure:
    exit_code, hint = _REFUSALS.get(type(error), (1, None))
    if isinstance(error, errors.NotFound):
        hint = None if "`semtask " in error.message else _where_to_look(error.details) or hint
    if isinstance(error, errors.Throttled) and error.retry_after_ms is not None:
        hint = f"try again in {error.retry_after_ms / 1000:g} s"
    data = dict(error.details)
    if error.trace_id:
        data["trace_id"] = error.trace_id
    if error.retry_after_ms is not None:
        data["retry_after_ms"] = error.retry_after_ms
    if exit_code == 1 and error.trace_id:
        hint = f"the daemon's log has more under the trace id {error.trace_id}"
    message = _in_our_words(error) if isinstance(error, errors.ValidationError) else error.message
    return Failure(exit_code, error.kind, message, hint, error.code, data)


def _where_to_look(details: dict[str, Any]) -> str | None:
    """The list that has what was not found, unless it is the one of jobs."""
    if "attempt" in details:
        return f"`semtask show {details['job_id']}` lists the attempts"
    if "artifacts" in details:
        return f"`semtask artifacts ls {details['artifacts']}` lists them"
    for thing in ("app", "task"):
        if thing in details:
            return f"`semtask {thing}s` lists them"
    return None


def _in_our_words(error: errors.ValidationError) -> str:
    """The daemon names parameters of its API; a person here knows them as options."""
    what, _, _ = error.message.partition(" - at `")
    path = str(error.details.get("parameter", ""))
    names = re.findall(r"\w*[a-z]", path)
    if names and what != error.message:
        name = names[-1]
        unit = " milliseconds" if name.endswith("_ms") else ""
        return f"{_OPTIONS.get(name, path)}: {what}{unit}"
    return re.sub(r"`(\w+)`", lambda named: f"`{_OPTIONS.get(named[1], named[1])}`", error.message)
