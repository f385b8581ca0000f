"""The name of a task: what its jobs are stored under, so it must be the same in whoever enqueues and whoever runs."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any


def name_of(function: Callable[..., Any]) -> str:
    """`module:qualname`. Raises ValueError for a function that has no name that a worker could find again."""
    qualname = function.__qualname__
    if "<" in qualname:
        what = "a lambda" if function.__name__ == "<lambda>" else f"{qualname!r}, which stands inside of a function,"
        raise ValueError(f"{what} needs a name of its own as a task: app.task(name='...')")
    return f"{_module_of(function)}:{qualname}"


def require_task(function: object) -> None:
    """Raises TypeError for what cannot be a task."""
    if not inspect.isroutine(function):
        raise TypeError(f"a task is a function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"a task returns one result; {function.__qualname__} is a generator")


def _module_of(function: Callable[..., Any]) -> str:
    """In a script that is run it is what others import it as, not `__main__`."""
    if function.__module__ != "__main__":
        return str(function.__module__)
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    if file is not None and not file.startswith("<"):  # <stdin>
        return str(os.path.splitext(os.path.basename(file))[0])
    raise ValueError(
        f"{function.__qualname__} is defined in no file, so no worker can import it; put it into a module, or name it: "
        "app.task(name='...')"
    )
