"""Exceptions of tasks as they are reported to the daemon: always described, whatever they are, and bounded."""

from __future__ import annotations

import itertools
import os
import traceback
from types import FrameType

from semtask.protocol.frames import ExceptionInfo

_MAX_NAME = 500
_MAX_MESSAGE = 8 * 1024
_MAX_TRACEBACK = 64 * 1024
_MAX_CAUSES = 5
_OWN_FRAMES = os.path.dirname(os.path.abspath(__file__)) + os.sep


def describe(error: BaseException) -> ExceptionInfo:
    """Type, message, traceback without the worker's own frames, and the chain of causes (the last 5)."""
    try:
        return _described(error)
    except BaseException as broken:  # noqa: BLE001 - the task's own class, in all that is asked of it
        return ExceptionInfo(type=_bare_name(error), message=f"<no message: to look at it raised {_bare_name(broken)}>")


def _described(error: BaseException) -> ExceptionInfo:
    info = ExceptionInfo(type=type_name(error), message=message_of(error), traceback=traceback_of(error))
    causes = _causes(error)
    cause: ExceptionInfo | None = None
    for raised in reversed(causes):
        cause = ExceptionInfo(type=type_name(raised), message=message_of(raised), cause=cause)
    return (
        info
        if cause is None
        else ExceptionInfo(type=info.type, message=info.message, traceback=info.traceback, cause=cause)
    )


def type_name(error: BaseException) -> str:
    kind = type(error)
    ours = kind.__module__ == "builtins" or kind.__module__.startswith("semtask.")
    name = kind.__qualname__ if ours else f"{kind.__module__}.{kind.__qualname__}"
    return clean(_shortened(name, _MAX_NAME))


def _bare_name(error: BaseException) -> str:
    """Without any code of its class."""
    return clean(_shortened(type.__getattribute__(type(error), "__name__"), _MAX_NAME))


def message_of(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException as broken:  # noqa: BLE001 - the task's own __str__
        return f"<no message: its __str__ raised {type_name(broken)}>"
    return clean(_shortened(text, _MAX_MESSAGE))


def traceback_of(error: BaseException) -> str:
    try:
        described = traceback.TracebackException.from_exception(error)
        _hide_own_frames(described)
        return clean(_shortened("".join(described.format()), _MAX_TRACEBACK))
    except BaseException as broken:  # noqa: BLE001 - the task's own classes take part; its memory may be at its end
        return f"<no traceback: to write it raised {type_name(broken)}>"


def stack_of(frame: FrameType | None) -> str:
    """Where the code of a task is: what the worker called, without what that has called of the worker (as by print)."""
    entries = list(traceback.StackSummary.extract(traceback.walk_stack(frame)))[::-1]
    worker = itertools.dropwhile(lambda entry: not _is_own(entry), entries)
    called = itertools.takewhile(lambda entry: not _is_own(entry), itertools.dropwhile(_is_own, worker))
    return clean("".join(traceback.format_list(list(called))))


def clean(text: str) -> str:
    """What can be sent: text without lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and len(found) < _MAX_CAUSES:
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
        if at is None or any(at is seen for seen in (error, *found)):
            break
        found.append(at)
    return found


def _hide_own_frames(described: traceback.TracebackException) -> None:
    waiting, seen = [described], set()
    while waiting:
        at = waiting.pop()
        seen.add(id(at))
        at.stack[:] = [entry for entry in at.stack if not _is_own(entry)]
        linked = (at.__cause__, at.__context__, *(at.exceptions or ()))
        waiting += [other for other in linked if other is not None and id(other) not in seen]


def _is_own(entry: traceback.FrameSummary) -> bool:
    return entry.filename.startswith(_OWN_FRAMES)


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
