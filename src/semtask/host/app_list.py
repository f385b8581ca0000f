"""The apps of a home: those of the user's settings, and those in `<home>/apps.json`, which `semtask apps add` writes.

What these files name is executed, so a file that somebody else may write to is refused. A name that is in
both is the app of the settings: a person wrote it there.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from semtask.config.apps import app_module, app_name
from semtask.config.loading import ENVIRONMENT, configured_apps
from semtask.config.settings import Settings
from semtask.config.text import decoded
from semtask.errors import ConfigError, Conflict
from semtask.host.replaced_file import locked, replace
from semtask.model.app import App


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    module: str
    directory: str
    python: str


class _AppsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    apps: dict[str, _Entry]


def read_apps(settings: Settings) -> list[App]:
    """All apps from the files as they are now: those that were added, in this order, then those of the settings. An app
    of the settings without `python` is run by ours.

    Raises ConfigError.
    """
    return list((_added(settings.home) | _configured(settings)).values())


def at_one_place(one: App, other: App) -> bool:
    """Whether both import the same module in the same folder, be it by links."""
    same_folder = os.path.realpath(one.directory) == os.path.realpath(other.directory)
    return same_folder and one.module == other.module


def add_app(settings: Settings, app: App) -> bool:
    """Put the app into the list of the home. False if it is there already.

    One of its name at the same place gets its interpreter. Raises ConfigError, and Conflict if another app, at another
    place, has this name, or the settings have one.
    """
    with _changing(settings.home) as apps:
        configured = _configured(settings).get(app.name)
        if configured is not None and configured != app:
            place = configured_apps(settings)[app.name].place
            raise Conflict(f"the app {app.name!r} is defined in {place}; change it there")
        known = configured or apps.get(app.name)
        if known is not None and not at_one_place(known, app):
            raise Conflict(
                f"there is another app {app.name!r}, {known.module} in {known.directory}, run by {known.python}; "
                f"choose another name with --name, or remove it first: semtask apps rm {app.name}"
            )
        if configured is None:
            apps[app.name] = app
        return known != app


def remove_app(home: Path, name: str) -> bool:
    """Take the app from the list of the home. False if it is not there. Raises ConfigError."""
    if not _path(home).exists():  # a look at what is not there makes no home
        return False
    with _changing(home) as apps:
        return apps.pop(name, None) is not None


def _configured(settings: Settings) -> dict[str, App]:
    configured = configured_apps(settings)
    for file in {Path(app.place) for app in configured.values() if app.place != ENVIRONMENT}:
        _require_safe(file, file.stat())
    return {name: _app(name, {"python": sys.executable, **app.table}) for name, app in configured.items()}


def _app(name: str, table: Mapping[str, str]) -> App:
    return App(name=name, module=table["module"], directory=table["directory"], python=table["python"])


def _path(home: Path) -> Path:
    return home / "apps.json"


def _added(home: Path) -> dict[str, App]:
    path = _path(home)
    try:
        with path.open("rb") as file:
            _require_safe(path, os.fstat(file.fileno()))
            text = file.read()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read the list of apps in {path}: {error.strerror}") from error
    if not text:  # just made, by somebody who is about to write the first list
        return {}
    try:
        entries = msgspec.json.decode(decoded(text), type=_AppsFile).apps
        return {name: _checked(name, entry) for name, entry in entries.items()}
    except (ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{path} is no list of apps ({error}); remove it, and add your apps again with `semtask apps add`"
        ) from error


def _checked(name: str, entry: _Entry) -> App:
    for place in (entry.directory, entry.python):
        if not os.path.isabs(place) or "\0" in place:
            raise ValueError(f"{place!r} is no absolute path")
    return App(
        name=app_name(name),
        module=app_module(entry.module),
        directory=entry.directory,
        python=entry.python,
    )


def _require_safe(path: Path, found: os.stat_result) -> None:
    """Raises ConfigError if somebody else could say what is executed."""
    if found.st_uid not in {os.geteuid(), 0}:
        raise ConfigError(
            f"{path} belongs to another user (uid {found.st_uid}), and what it lists would be executed; remove it"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o022:
        raise ConfigError(
            f"others can write to {path} (mode {mode:04o}), and what it lists would be executed; "
            f"close it: chmod go-w {shlex.quote(str(path))}"
        )


@contextmanager
def _changing(home: Path) -> Iterator[dict[str, App]]:
    """The list of the home, to be changed by one process at a time; written at the end, if it has changed."""
    with locked(_path(home)):
        apps = _added(home)
        before = dict(apps)
        yield apps
        if apps != before:
            _write(_path(home), apps)


def _write(path: Path, apps: Mapping[str, App]) -> None:
    entries = {
        name: {"module": app.module, "directory": app.directory, "python": app.python} for name, app in apps.items()
    }
    replace(path, json.dumps({"apps": entries}, indent=2) + "\n")
