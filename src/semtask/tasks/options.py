"""The options of a job in the words of the SDK, and as parameters of dev.enqueue.v1: see model.job.JobSpec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any, Self, overload

import msgspec

from semtask.model.job import JobSpec
from semtask.model.option import Declared, Use, declared
from semtask.protocol.enqueue import EnqueueParams
from semtask.tasks.control import Retry

Seconds = timedelta | float

_LONGEST_S = 1000 * 365 * 86_400  # what the API takes
OPTIONS: Mapping[str, Declared] = {option.name: option for option in declared(JobSpec)}
_SPOKEN = [option for option in OPTIONS.values() if option.option.use is not Use.PROGRAMS]
_PLAIN = {option.word: option for option in _SPOKEN if not option.option.within}
_OF_TASKS = {option.option.within or option.word for option in _SPOKEN if option.option.use is Use.EVERYWHERE}


@dataclass(frozen=True)
class TaskOptions:
    """What a task says for all of its jobs.

    `params` are parameters of dev.enqueue.v1, with `deadline_ms` for a deadline that is counted from the enqueue, or
    from the time for which the job is scheduled. `concurrency`: so many jobs of the task run at most.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int | None = None

    @classmethod
    def of(cls, *, concurrency: int | None = None, **words: Any) -> Self:
        """From the words of the SDK; None is as good as no word. Raises ValueError, naming the option, and TypeError
        for an unknown one.
        """
        require_known(words, _OF_TASKS)
        said = {word: value for word, value in words.items() if value is not None}
        params = params_of(said)
        require_options(params)
        if "deadline" in said:
            params["deadline_ms"] = milliseconds("deadline", said["deadline"])
        if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
            raise ValueError(f"concurrency must be a whole number of at least 1, not {concurrency!r:.100}")
        return cls(params, concurrency)


def require_known(words: Mapping[str, Any], known: set[str]) -> None:
    """Raises TypeError for words that are not known."""
    if unknown := set(words) - known:
        raise TypeError(f"unknown option {', '.join(map(repr, sorted(unknown)))}")


def params_of(words: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of dev.enqueue.v1 for words of the SDK, but for `deadline`, `delay` and `at`, which are counted
    from the enqueue. Raises ValueError for what is no duration and no Retry.
    """
    params: dict[str, Any] = {}
    for word, value in words.items():
        if word == "retry":
            params.update(_retry(value))
        elif (option := _PLAIN.get(word)) is not None:
            params[option.name] = milliseconds(word, value) if option.is_duration else value
    return params


def require_options(params: Mapping[str, Any]) -> None:
    """Raises ValueError for parameters of dev.enqueue.v1 that it would refuse, by the names of the SDK."""
    for name, value in params.items():
        try:
            # One by one: so the error names the option, whatever is wrong with it.
            job = msgspec.json.encode({"job_type": "task", "payload": None, name: value}, enc_hook=_no_json)
            msgspec.json.decode(job, type=EnqueueParams)
        except (msgspec.ValidationError, UnicodeEncodeError, TypeError, ValueError) as error:
            reason = str(error).partition(" - at ")[0].replace("`", "")
            meaning = _values_of(name) if "regex" in reason else ""
            reason = f"must be {meaning}" if meaning else f"{reason[:1].lower()}{reason[1:]}"
            unit = " ms" * OPTIONS[name].is_duration
            raise ValueError(f"{OPTIONS[name].word} is not valid: {reason}{unit}; it is {value!r:.100}{unit}") from None
        if not isinstance(value, str | int | float | Enum):  # written as text, it would be another value
            raise ValueError(f"{OPTIONS[name].word} is not valid: it is {value!r:.100}")


def _no_json(value: Any) -> Any:
    raise TypeError(f"a {type(value).__qualname__} is none of its values")


def _values_of(name: str) -> str:
    """What the pattern of an option lets through, in words."""
    bounds = OPTIONS[name].option.bounds
    return (bounds and bounds.description) or ""


def _retry(retry: Retry | int) -> dict[str, Any]:
    """A number is the executions allowed, as in Retry(number)."""
    if type(retry) is int:
        return {"max_attempts": retry}
    if not isinstance(retry, Retry):
        raise ValueError(f"retry must be a Retry, or the number of executions allowed, not {retry!r:.100}")
    if type(retry.factor) not in {int, float} or not math.isfinite(retry.factor):
        raise ValueError(f"factor of retry must be a number, not {retry.factor!r:.100}")
    options: dict[str, Any] = {
        "max_attempts": retry.attempts,
        "backoff_factor": float(retry.factor),
        "retry_max_delay_ms": milliseconds("cap of retry", retry.cap),
    }
    if retry.base is not None:
        options["retry_base_delay_ms"] = milliseconds("base of retry", retry.base)
    return options


@overload
def milliseconds(word: str, duration: Seconds) -> int: ...
@overload
def milliseconds(word: str, duration: Seconds | None) -> int | None: ...
def milliseconds(word: str, duration: Seconds | None) -> int | None:
    """Raises ValueError, naming the option, for what is no duration."""
    if duration is None:
        return None
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    try:
        valid = 0 <= seconds <= _LONGEST_S and not isinstance(seconds, bool)
    except (TypeError, ValueError):  # what is no number, and an array
        valid = False
    if not valid:
        raise ValueError(
            f"{word} must be seconds or a timedelta, not negative and at most a thousand years: {duration!r:.100}"
        )
    return round(seconds * 1000)
