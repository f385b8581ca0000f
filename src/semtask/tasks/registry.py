"""The tasks that an app offers, as values. What runs them and what enqueues them read the same registry."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from semtask.tasks.codec import Signature
from semtask.tasks.options import TaskOptions, require_options


class DuplicateTask(ValueError):
    """Two tasks of one app have one name."""


def require_name(name: object) -> None:
    """Raises ValueError for what cannot be the name of a task or of a command."""
    if not isinstance(name, str):
        raise ValueError(f"name must be a str, not {name!r:.100}")
    require_options({"job_type": name})


@dataclass(frozen=True)
class TaskDefinition:
    """A task: its name, the function, and how its jobs are run.

    `source` is the project it belongs to, see tasks.source: a job with another one is not its job. `unreachable`: why
    no worker could import it, so that it can be called, and not enqueued.
    """

    name: str
    function: Callable[..., Any]
    is_async: bool
    options: TaskOptions = field(default_factory=TaskOptions)
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

        A function whose module is imported again replaces itself.
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
