"""The tasks that an app offers, as values. What runs them and what enqueues them read the same registry."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import Enum
from functools import cached_property
from typing import Any, Self, get_args

import msgspec

from semtask.protocol.enqueue import EnqueueParams
from semtask.tasks.codec import Signature
from semtask.tasks.control import Retry

Seconds = timedelta | float

_LONGEST_S = 1000 * 365 * 86_400  # what the API takes
# Options that the API has by the same name and in the same unit.
_PLAIN_OPTIONS = frozenset(
    ["queue", "priority", "retry_on_crash", "tag", "on_interrupt", "on_duplicate", "durability", "concurrency"]
)


class DuplicateTask(ValueError):
    """Two tasks of one app have one name."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """How the jobs of a task are run, in the units of the API; None where the task does not say.

    `deadline_ms` is counted from the enqueue, or from the time for which the job is scheduled. `concurrency`: so many
    jobs of the task run at once.
    """

    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    backoff_factor: float | None = None
    retry_base_delay_ms: int | None = None
    retry_max_delay_ms: int | None = None
    retry_on_crash: bool | None = None
    timeout_ms: int | None = None
    deadline_ms: int | None = None
    ttl_ms: int | None = None
    grace_ms: int | None = None
    tag: str | None = None
    on_interrupt: str | None = None
    on_duplicate: str | None = None
    durability: str | None = None
    concurrency: int | None = None

    @classmethod
    def of(
        cls,
        *,
        retry: Retry | int | None = None,
        timeout: Seconds | None = None,
        deadline: Seconds | None = None,
        ttl: Seconds | None = None,
        grace: Seconds | None = None,
        **options: Any,
    ) -> Self:
        """From the words of the SDK: durations are seconds or timedelta. Raises ValueError, naming the
        option, and TypeError for an unknown one.
        """
        if unknown := set(options) - _PLAIN_OPTIONS:
            raise TypeError(f"unknown option {', '.join(map(repr, sorted(unknown)))}")
        made = cls(
            **retry_options(retry),
            timeout_ms=milliseconds("timeout", timeout),
            deadline_ms=milliseconds("deadline", deadline),
            ttl_ms=milliseconds("ttl", ttl),
            grace_ms=milliseconds("grace", grace),
            **options,
        )
        require_options({name: value for name, value in made.defaults().items() if name != "deadline_ms"})
        if made.concurrency is not None and (type(made.concurrency) is not int or made.concurrency < 1):
            raise ValueError(f"concurrency must be a whole number of at least 1, not {made.concurrency!r:.100}")
        return made

    def defaults(self) -> dict[str, Any]:
        """What is said, by the names of dev.enqueue.v1; `deadline_ms` stands for a deadline that is not counted yet."""
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "concurrency"}
        return {name: value for name, value in said.items() if value is not None}


_OPTIONS = {
    "subject_key": "subject",
    "timeout_ms": "timeout",
    "ttl_ms": "ttl",
    "grace_ms": "grace",
    "max_attempts": "retry",
    "backoff_factor": "factor of retry",
    "retry_base_delay_ms": "base of retry",
    "retry_max_delay_ms": "cap of retry",
    "job_type": "name",
}


def require_options(params: Mapping[str, Any]) -> None:
    """Raises ValueError for parameters of dev.enqueue.v1 that it would refuse, by the names of the SDK."""
    for name, value in params.items():
        try:
            # One by one: so the error names the option, whatever is wrong with it.
            job = msgspec.json.encode({"job_type": "task", "payload": None, name: value}, enc_hook=_no_json)
            msgspec.json.decode(job, type=EnqueueParams)
        except (msgspec.ValidationError, UnicodeEncodeError, TypeError, ValueError) as error:
            reason = str(error).partition(" - at ")[0].replace("`", "")
            meaning = _meaning(name) if "regex" in reason else ""
            reason = f"must be {meaning}" if meaning else f"{reason[:1].lower()}{reason[1:]}"
            unit = " ms" * name.endswith("_ms")
            raise ValueError(
                f"{_OPTIONS.get(name, name)} is not valid: {reason}{unit}; it is {value!r:.100}{unit}"
            ) from None
        if not isinstance(value, str | int | float | Enum):  # written as text, it would be another value
            raise ValueError(f"{_OPTIONS.get(name, name)} is not valid: it is {value!r:.100}")


def _no_json(value: Any) -> Any:
    raise TypeError(f"a {type(value).__qualname__} is none of its values")


def _meaning(name: str) -> str:
    """What the pattern of a parameter says, in words."""
    field = next(field for field in msgspec.structs.fields(EnqueueParams) if field.name == name)
    kinds = [field.type, *get_args(field.type)]
    metas = [meta for kind in kinds for meta in getattr(kind, "__metadata__", ())]
    return next((meta.description for meta in metas if meta.description), "")


def require_name(name: object) -> None:
    """Raises ValueError for what cannot be the name of a task or of a command."""
    if not isinstance(name, str):
        raise ValueError(f"name must be a str, not {name!r:.100}")
    require_options({"job_type": name})


def retry_options(retry: Retry | int | None) -> dict[str, Any]:
    """The options of dev.enqueue.v1 for `retry`; a number is the executions allowed, as in Retry(number)."""
    if retry is None:
        return {}
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


def milliseconds(option: str, duration: Seconds | None) -> int | None:
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
            f"{option} must be seconds or a timedelta, not negative and at most a thousand years: {duration!r:.100}"
        )
    return round(seconds * 1000)


@dataclass(frozen=True)
class TaskDefinition:
    """A task: its name, the function, and how its jobs are run.

    `source` is the project it belongs to, see tasks.source: a job with another one is not its job. `unreachable`: why
    no worker could import it, so that it can be called, and not enqueued.
    """

    name: str
    function: Callable[..., Any]
    is_async: bool
    options: TaskOptions = TaskOptions()
    source: str | None = None
    unreachable: str | None = None

    def is_foreign(self, source: str | None) -> bool:
        """Whether a job with this source was enqueued by another project."""
        return source is not None and self.source is not None and source != self.source

    @cached_property
    def signature(self) -> Signature:
        return Signature(self.function, self.name)


class Registry:
    """The tasks of one app by name, in the order in which they were defined."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskDefinition] = {}
        self._executions: dict[str, object] = {}

    def add(self, definition: TaskDefinition) -> None:
        """Raises DuplicateTask, and ValueError for a bad name.

        A function whose module is imported once more takes the place of itself.
        """
        require_name(definition.name)
        other, execution = self._tasks.get(definition.name), _execution(definition.function)
        if other is not None and not self._is_again(other, definition, execution):
            raise DuplicateTask(
                f"two tasks of one name: {definition.name!r} is {_place(other.function)} already, "
                f"now also {_place(definition.function)}; name one of them with name="
            )
        self._tasks[definition.name] = definition
        self._executions[definition.name] = execution

    def _is_again(self, other: TaskDefinition, definition: TaskDefinition, execution: object) -> bool:
        one, new = other.function, definition.function
        if _is_same(one, new):
            return True
        before = self._executions[definition.name]
        reloaded = execution is not before and one.__module__ == new.__module__
        return reloaded and one.__qualname__ == new.__qualname__

    def get(self, name: str) -> TaskDefinition | None:
        return self._tasks.get(name)

    def __iter__(self) -> Iterator[TaskDefinition]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)


def _is_same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether it is one function of two imports: reloaded, by another name of its module, or also run as a script.

    Each import makes a code object of its own. Two definitions in one import differ in their lines, and a function that
    makes several tasks makes them of one code object.
    """
    if one is other:
        return True
    codes = [getattr(inspect.unwrap(function), "__code__", None) for function in (one, other)]
    if codes[0] is None or codes[1] is None or codes[0] is codes[1]:
        return False
    places = [(os.path.realpath(code.co_filename), code.co_qualname, code.co_firstlineno) for code in codes if code]
    return places[0] == places[1]


def _execution(function: Callable[..., Any]) -> object:
    """Stands for one execution of its module, of which a reload makes another."""
    module = getattr(function, "__globals__", {})
    if module.get("__name__") == "__main__" and "__file__" not in module:
        return object()  # in a notebook or a shell each definition replaces the one before
    return module.get("__spec__")


def _place(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}{where}"
