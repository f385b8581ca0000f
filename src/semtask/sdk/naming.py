"""The name of a task: what its jobs are stored under, so it must be the same in whoever enqueues and whoever runs."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

# A script is `__main__`; in a child process that multiprocessing spawned, `__mp_main__`.
_MAINS = ("__main__", "__mp_main__")


class Unreachable(ValueError):
    """No worker can import the function under the name of its module, so no job of it could ever run."""


def name_of(function: Callable[..., Any]) -> str:
    """`module:qualname`. Raises ValueError for a function that has no name, and Unreachable for one whose module has
    none that a worker could import.
    """
    qualname = function.__qualname__
    if "<" in qualname:
        what = (
            "a lambda" if function.__name__ == "<lambda>" else f"{qualname!r}, which is defined inside of a function,"
        )
        raise ValueError(f"{what} needs a name of its own as a task: app.task(name='...')")
    namespace = namespace_of(function)
    if not _is_run(function, namespace):
        return f"{function.__module__}:{qualname}"
    try:
        return f"{main_module(namespace, function)}:{qualname}"
    except ValueError as error:
        raise Unreachable(
            f"no worker can import {qualname}: {error}; move it, with its app, into a module of its own, import that "
            "here, and run it: semtask up --app MODULE"
        ) from None


def require_task(function: object) -> None:
    """Raises TypeError for what cannot be a task."""
    if not inspect.isroutine(function):
        raise TypeError(f"a task is a function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"a task returns one result; {function.__qualname__} is a generator")


def namespace_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The variables of the module that defines the function, also where that is not in sys.modules: `python -m cProfile
    script.py`, `-m trace` and others run the script beside their own `__main__`.
    """
    namespace: Mapping[str, Any] | None = getattr(inspect.unwrap(function), "__globals__", None)
    return vars(sys.modules["__main__"]) if namespace is None else namespace


def _is_run(function: Callable[..., Any], namespace: Mapping[str, Any]) -> bool:
    """Whether its module was run rather than imported, also under another name: runpy.run_path(path, run_name=...)."""
    run = namespace.get("__spec__") is None and "__file__" in namespace
    return function.__module__ in _MAINS or (run and namespace.get("__name__") == function.__module__)


def main_module(namespace: Mapping[str, Any], function: Callable[..., Any] | None = None) -> str:
    """What others import a program that is run as, with these variables. Raises ValueError, saying why there is none.

    `python -m package.module` says it. The name of a script is that of its file, below the packages that it lies in.
    """
    spec = namespace.get("__spec__")
    if spec is not None and spec.name not in _MAINS:
        return str(spec.name)
    file = namespace.get("__file__")
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    if not isinstance(file, str) or file.startswith("<") or (code is not None and not _is_of(code.co_filename, file)):
        raise ValueError("it is defined in no file (a notebook, the interactive interpreter, stdin, or -c)")
    return _name_of_file(os.path.abspath(file))


def _is_of(code_file: str, file: str) -> bool:
    """Whether the code was compiled from the file: what is typed in after a script has run is not."""
    return code_file == file or os.path.realpath(code_file) == os.path.realpath(file) or not file.endswith(".py")


def _name_of_file(file: str) -> str:
    folder, base = os.path.split(file)
    stem, extension = os.path.splitext(base)
    if not os.path.isfile(file):
        raise ValueError(f"{file} is no file that can be imported (a zip archive, or a bundled program)")
    if extension not in {".py", ".pyc"}:
        raise ValueError(f"{file} does not end in .py")
    parts = [] if stem == "__init__" else [stem]
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder, package = os.path.split(folder)
        parts.insert(0, package)
    if parts in ([], ["__main__"]):
        raise ValueError(f"{file} is what runs the folder it lies in, and has no name of its own")
    for part in parts:
        if not part.isidentifier():
            raise ValueError(f"{part!r} in {file} is no name of a module")
    return ".".join(parts)
