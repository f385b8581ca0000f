"""The tasks that an app offers, as values. What runs them and what enqueues them read the same registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cached_property
from typing import Any, Self

import msgspec

from semtask.protocol.enqueue import EnqueueParams
from semtask.tasks.codec import Signature
from semtask.tasks.control import Retry

Seconds = timedelta | float

_LONGEST_S = 1000 * 365 * 86_400  # what the API takes


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
        """From the words of the SDK: durations are seconds or timedelta. Raises ValueError, naming the option."""
        made = cls(
            **retry_options(retry),
            timeout_ms=milliseconds("timeout", timeout),
            deadline_ms=milliseconds("deadline", deadline),
            ttl_ms=milliseconds("ttl", ttl),
            grace_ms=milliseconds("grace", grace),
            **options,
        )
        made._validate()
        return made

    def defaults(self) -> dict[str, Any]:
        """What is said, by the names of dev.enqueue.v1; `deadline_ms` stands for a deadline that is not counted yet."""
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "concurrency"}
        return {name: value for name, value in said.items() if value is not None}

    def _validate(self) -> None:
        params = {name: value for name, value in self.defaults().items() if name != "deadline_ms"}
        try:
            job = msgspec.json.encode({"job_type": "task", "payload": None, **params})
            msgspec.json.decode(job, type=EnqueueParams)
        except (msgspec.ValidationError, TypeError) as error:
            raise ValueError(f"an option of a task is not valid: {error}") from None
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency must be a whole number of at least 1, not {self.concurrency!r}")


def retry_options(retry: Retry | int | None) -> dict[str, Any]:
    """The options of dev.enqueue.v1 for `retry`; a number is the executions allowed, as in Retry(number)."""
    if retry is None:
        return {}
    if isinstance(retry, int):
        return {"max_attempts": retry}
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
        valid = 0 <= seconds <= _LONGEST_S
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(
            f"{option} must be seconds or a timedelta, not negative and at most a thousand years: {duration!r:.100}"
        )
    return round(seconds * 1000)


@dataclass(frozen=True)
class TaskDefinition:
    """A task: its name, the function, and how its jobs are run."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    options: TaskOptions = TaskOptions()

    @cached_property
    def signature(self) -> Signature:
        return Signature(self.function, self.name)


class Registry:
    """The tasks of one app by name, in the order in which they were defined."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskDefinition] = {}

    def add(self, definition: TaskDefinition) -> None:
        """Raises DuplicateTask."""
        if (other := self._tasks.get(definition.name)) is not None:
            raise DuplicateTask(
                f"two tasks of one name: {definition.name!r} is {_place(other.function)} already, "
                f"now also {_place(definition.function)}; name one of them with name="
            )
        self._tasks[definition.name] = definition

    def get(self, name: str) -> TaskDefinition | None:
        return self._tasks.get(name)

    def __iter__(self) -> Iterator[TaskDefinition]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)


def _place(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}{where}"
