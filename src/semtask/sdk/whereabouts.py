"""Where an app that lives in this process can be imported from by others."""

from __future__ import annotations

import os
import re
import site
import sys
from contextlib import AbstractContextManager
from typing import Protocol

from semtask.config.apps import app_module
from semtask.model.app import App
from semtask.sdk.naming import main_module
from semtask.tasks.registry import Registry


class LocalApp(Protocol):
    """What is needed of an app that lives in this process: `sdk.app` has it."""

    registry: Registry

    def connected_to(self, home: str | os.PathLike[str]) -> AbstractContextManager[None]: ...


def app_of(semantica: LocalApp, module: str | None = None) -> App:
    """The app as a worker of this interpreter can import it. `module`: `package.module:attribute`.

    Raises ValueError if it is not known which module that is, or has no file.
    """
    if module is None:
        name, attribute = _find(semantica)
    else:
        name, _, attribute = app_module(module).partition(":")
    own = re.sub(r"[^A-Za-z0-9_-]", "-", name, flags=re.ASCII)[-64:]
    return App(name=own, module=f"{name}:{attribute}", directory=_directory(name), python=sys.executable)


def require_no_worker() -> None:
    """Raises RuntimeError while a worker imports the module of its app."""
    from semtask.tasks.context import current_or_none

    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name == "semtask.worker.__main__" and current_or_none() is None:
        raise RuntimeError(
            "app.embedded() was called while a worker imported the module of the app; put what the program does "
            "below `if __name__ == '__main__':`, so that its tasks can be imported without running it"
        )


def _find(semantica: LocalApp) -> tuple[str, str]:
    """(module, attribute). First where its tasks are defined, last in the script that is run."""
    of_tasks = {definition.function.__module__ for definition in semantica.registry}
    ranked = sorted(sys.modules, key=lambda name: (name == "__main__", name not in of_tasks))
    for name in ranked:
        for attribute, value in list(getattr(sys.modules[name], "__dict__", {}).items()):
            if value is semantica:
                return _importable(name), attribute
    raise ValueError(
        "no module holds this app, so no worker can import it; make it at the top of a module, or name one: "
        "app.embedded(module='package.module:app')"
    )


def _importable(name: str) -> str:
    """The name by which another process imports it: a script that is run has that of its file."""
    if name != "__main__":
        return name
    try:
        return main_module(vars(sys.modules["__main__"]))
    except ValueError as error:
        raise ValueError(
            f"no worker can import the app: {error}; put the app and its tasks into a module beside it, and import "
            "that here"
        ) from None


def _directory(name: str) -> str:
    """The folder in which `import name` finds the module; the working directory where it is installed, or unknown."""
    module = sys.modules.get(name) or sys.modules["__main__"]
    file = getattr(module, "__file__", None)
    if file is None:
        return os.getcwd()
    folder = os.path.dirname(os.path.abspath(file))
    is_package = os.path.splitext(os.path.basename(file))[0] == "__init__"
    for _ in range(name.count(".") + is_package):
        folder = os.path.dirname(folder)
    installed = {os.path.abspath(path) for path in site.getsitepackages()}
    return os.getcwd() if folder in installed else folder
