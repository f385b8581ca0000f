"""The [apps.NAME] tables of the user file: what an app may be named, and what it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from semtask.config.kinds import Kind, parse_path
from semtask.errors import suggestion

_APP_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_APP_MODULE = re.compile(rf"{_DOTTED}:{_DOTTED}")
_APP_KEYS = ("module", "directory", "python")
APPS_VARIABLE = "SEMANTICA_APPS__NAME__KEY"
_VARIABLE_PREFIX = "SEMANTICA_APPS__"


def app_name(text: str) -> str:
    """The text, if it can name an app. Raises ValueError."""
    if not _APP_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no name of an app; take 1 to 64 letters, digits, _ and -")
    return text


def app_module(text: str) -> str:
    """`package.module:attribute`, with the attribute `app` where the text names none. Raises ValueError."""
    module = text if ":" in text else f"{text}:app"
    if "/" in text or module.partition(":")[0].endswith(".py"):
        raise ValueError(f"{text!r} is a file; name the module as an import does, like package.module:app")
    if not _APP_MODULE.fullmatch(module):
        raise ValueError(f"{text!r} is no module; write it like package.module:app")
    return module


def apps_in(env: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The tables that variables like SEMANTICA_APPS__shop__MODULE spell. Raises ValueError for one that is not so."""
    tables: dict[str, dict[str, str]] = {}
    for variable, value in env.items():
        if is_of_app(variable) and value:
            name, _, key = variable.removeprefix(_VARIABLE_PREFIX).rpartition("__")
            if not name or key.lower() not in _APP_KEYS:
                keys = ", ".join(key.upper() for key in _APP_KEYS)
                raise ValueError(f"{variable} must be {APPS_VARIABLE}, with a key of {keys}")
            tables.setdefault(name, {})[key.lower()] = value
    return tables


def is_of_app(variable: str) -> bool:
    return variable.startswith(_VARIABLE_PREFIX)


def variables_of(apps: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The environment that `apps_in` reads these tables from."""
    return {f"{_VARIABLE_PREFIX}{name}__{key.upper()}": text for name, app in apps.items() for key, text in app.items()}


def _parse_apps(value: Any) -> dict[str, dict[str, str]]:
    if not isinstance(value, Mapping):
        raise ValueError("apps must be tables, [apps.NAME]")
    return {app_name(name): _parse_app(f"[apps.{name}]", table) for name, table in value.items()}


def _parse_app(place: str, table: Any) -> dict[str, str]:
    if not isinstance(table, Mapping):
        raise ValueError(f"{place} must be a table")
    for key, value in table.items():
        if key not in _APP_KEYS:
            raise ValueError(f"{place} knows no {key!r}{suggestion(key, _APP_KEYS)}")
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"{place}: {key} must be text, not {value!r}")
    for key in ("module", "directory"):
        if key not in table:
            raise ValueError(f"{place} needs {key}")
    try:
        app = {"module": app_module(table["module"]), "directory": str(parse_path(table["directory"]))}
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if "python" in table:
        if "/" not in table["python"]:
            raise ValueError(f"{place}: python must be the path of an interpreter, not {table['python']!r}")
        app["python"] = str(parse_path(table["python"]))  # its link is not followed: it tells which virtualenv it is
    return app


_text = {"type": "string", "minLength": 1}
APPS = Kind(
    _parse_apps,
    {
        "type": "object",
        "propertyNames": {"pattern": f"^{_APP_NAME.pattern}$"},
        "additionalProperties": {
            "type": "object",
            "additionalProperties": False,
            "required": ["module", "directory"],
            "properties": {
                "module": {"description": "package.module:attribute; without attribute `app`", **_text},
                "directory": {"description": "the folder that it is imported and run in", **_text},
                "python": {"description": "its interpreter, with semtask installed; default the daemon's", **_text},
            },
        },
    },
)
