"""The import of an app, and what is reported to the daemon about it."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

from semtask.protocol.frames import Failed, TaskInfo
from semtask.tasks.context import importing_app
from semtask.tasks.forms import UnsupportedType
from semtask.tasks.registry import Registry, TaskDefinition
from semtask.worker.exceptions import clean, describe, message_of, type_name

_MAX_DOC = 500
_MAX_ERROR = 500
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class AppFailure(Exception):
    """The app cannot be used; says why, on one line for people."""

    def __init__(self, error: str, traceback: str = "") -> None:
        super().__init__(error)
        self.failed = Failed(error=error, traceback=traceback)


def load(app: str) -> Registry:
    """Import `module:attribute` from the working directory and sys.path. Raises AppFailure for whatever happens."""
    if not sys.path or sys.path[0] != os.getcwd():
        sys.path.insert(0, os.getcwd())
    name, _, attribute = app.partition(":")
    if not name or not attribute:
        raise AppFailure(f"{app!r} names no app: it must be module:attribute, for example jobs:app")
    try:
        with importing_app():
            module = importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 - also SystemExit: the daemon is to be told
        raise _failure(f"the module {name} of the app {app} cannot be imported", error) from None
    return _registry(module, app, attribute)


def _registry(module: Any, app: str, attribute: str) -> Registry:
    place = getattr(module, "__file__", None) or "a folder without __init__.py"
    found = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise AppFailure(f"the app {app} is not there: {module.__name__} ({place}) has no {attribute!r}") from None
    registry = getattr(found, "registry", None)
    if not isinstance(registry, Registry):
        kind = type(found).__qualname__
        raise AppFailure(f"{app} ({place}) is no app but a {kind}: make it with `{attribute} = Semantica()`")
    return registry


def offers_of(registry: Registry) -> tuple[list[TaskInfo], dict[str, str]]:
    """The tasks of an app, and those that cannot be offered with the reason: the others do not suffer by them."""
    infos: list[TaskInfo] = []
    refused: dict[str, str] = {}
    for definition in registry:
        try:
            infos.append(task_info(definition))
        except UnsupportedType as error:
            refused[definition.name] = clean(str(error))
        except Exception as error:  # noqa: BLE001 - what the classes of annotations can raise
            refused[definition.name] = (
                f"the task {definition.name} cannot be described: {type_name(error)}: {message_of(error)}"
            )
    return infos, refused


def task_info(definition: TaskDefinition) -> TaskInfo:
    signature = definition.signature
    return TaskInfo(
        name=definition.name,
        is_async=definition.is_async,
        parameters=signature.parameters_schema(),
        returns=signature.returns_schema(),
        doc=_first_paragraph(definition.function.__doc__),
        defaults=dict(definition.options.params),
        concurrency=definition.options.concurrency,
        source=definition.source,
    )


def _first_paragraph(doc: str | None) -> str | None:
    text = " ".join((doc or "").strip().partition("\n\n")[0].split())
    return text[:_MAX_DOC] or None


def _failure(what: str, error: BaseException) -> AppFailure:
    described = describe(error)
    if isinstance(error, SystemExit):
        why = f"it called sys.exit({error.code!r})"
    else:
        first = described.message.partition("\n")[0]
        why = f"{described.type}: {first}" if first else described.type
    place = _place(error)
    at = f" ({place})" if place and not isinstance(error, SyntaxError) else ""
    return AppFailure(f"{what}: {why}{at}"[:_MAX_ERROR], described.traceback)


def _place(error: BaseException) -> str | None:
    """File and line of the innermost code that is neither semtask's nor that of the import system."""
    for entry in reversed(traceback.extract_tb(error.__traceback__)):
        if not entry.filename.startswith((_OWN, "<frozen importlib", importlib.__file__ or "<")):
            return f"{entry.filename}, line {entry.lineno}"
    return f"looked for in {os.getcwd()} and sys.path" if isinstance(error, ModuleNotFoundError) else None
