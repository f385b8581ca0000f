"""What the end of a job in a worker means, as an Outcome."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from semtask.model import outcome
from semtask.model.outcome import FailureClass, Outcome
from semtask.model.state import EndCause
from semtask.protocol.frames import Ended
from semtask.tasks.artifacts import is_kept

_MAX_ERROR = 1000
_encode = msgspec.json.Encoder().encode


def of_frame(ended: Ended, *, told_to_stop: bool) -> Outcome:
    """`told_to_stop`: a failure may be the doing of that; a result counts all the same."""
    if ended.end == "done" and ended.progress is None and not ended.artifacts and ended.log_bytes is None:
        return Outcome(end_cause=EndCause.SUCCESS, result=ended.result)  # nearly all of them
    made = _BY_END[ended.end](ended)
    kept = [info for info in ended.artifacts if is_kept(info, ended.job_id)]
    return msgspec.structs.replace(
        made,
        stopped=ended.end == "stopped" or (told_to_stop and made.failure is FailureClass.HANDLER),
        result=ended.result,
        exception=None if ended.exception is None else _text(ended.exception),
        artifacts=_text(kept) if kept else None,
        progress=None if ended.progress is None else _text(ended.progress),
        log_bytes=ended.log_bytes,
    )


def _success(_ended: Ended) -> Outcome:
    return outcome.success()


def _failed(ended: Ended) -> Outcome:
    return outcome.exception(_line(ended), delay_ms=ended.delay_ms)


def _permanent(ended: Ended) -> Outcome:
    return outcome.exception(_line(ended), permanent=True)


def _bad_payload(ended: Ended) -> Outcome:
    return outcome.bad_payload(ended.exception.message if ended.exception is not None else "the arguments do not fit")


def _snoozed(ended: Ended) -> Outcome:
    return outcome.snoozed(ended.delay_ms or 0)


def _cancelled(ended: Ended) -> Outcome:
    return outcome.cancelled(ended.exception.message if ended.exception is not None else None)


def _stopped(_ended: Ended) -> Outcome:
    return msgspec.structs.replace(outcome.interrupted(""), error=None)  # the stop reason says it all


_BY_END: dict[str, Callable[[Ended], Outcome]] = {
    "done": _success,
    "failed": _failed,
    "permanent": _permanent,
    "bad_payload": _bad_payload,
    "retry": _failed,
    "snooze": _snoozed,
    "cancel": _cancelled,
    "stopped": _stopped,
}


def _line(ended: Ended) -> str:
    """`ValueError: text`, on one line."""
    info = ended.exception
    if info is None:
        return "it failed without an exception"
    return one_line(f"{info.type}: {info.message}" if info.message else info.type)


def one_line(text: str) -> str:
    """The words of a text without its line breaks, of bounded length."""
    words = " ".join(text[: 4 * _MAX_ERROR].split())
    return words if len(words) <= _MAX_ERROR else f"{words[: _MAX_ERROR - 3]}..."


def _text(value: object) -> str:
    return _encode(value).decode()
