"""Reads the settings: defaults < user file < home's file < project file < environment < flags. Unset is not default.

From the general to the special: a user has several homes, and a home serves several projects. One daemon serves all
projects of its home, so what only the daemon reads has no effect in a project file: it belongs to the home's file or
the user file. `config.unused` reports it.

The whole package needs the standard library only, and is cheap to import: the command line reads its settings here
before every request.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from semtask.config.apps import APPS, apps_in
from semtask.config.kinds import PATH
from semtask.config.settings import (
    BY_ENV,
    FIELDS,
    PROJECT_FILE,
    USER_FILE,
    VARIABLES,
    Settings,
    default_home,
    user_folder,
)
from semtask.config.text import decoded
from semtask.errors import ConfigError

ENVIRONMENT = "the environment"
_Layer = tuple[str, Mapping[str, Any]]


class ConfiguredApp(NamedTuple):
    """An app of the settings, and the file that defines it, or ENVIRONMENT."""

    table: Mapping[str, str]
    place: str


def load(
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    *,
    cwd: str | None = None,
    problems: list[ConfigError] | None = None,
) -> Settings:
    """The settings in force. Raises ConfigError with the place of the first bad value.

    With `problems` a file that cannot be read, or a bad value in one, is added to them and left out. What is wrong in
    the environment or on the command line is still raised, and what may concern the home, which all else depends on.
    """
    env = os.environ if env is None else env
    user_file = user_folder(env, "XDG_CONFIG_HOME", ".config") / USER_FILE
    general: list[_Layer] = []
    with _left_out(problems):
        general = _layer(user_file)
    environment = _of_environment(env)
    project: list[_Layer] = []
    project_file: Path | None = None
    with _left_out(problems):
        project = _project_layer(project_file := _project_file(cwd))
    special = [
        *project,
        (ENVIRONMENT, environment),
        ("the command line", {k: v for k, v in (flags or {}).items() if v is not None}),
    ]
    if problems:
        _require_no_home(problems, project_file, special)
        _require_no_home(problems, user_file, [*general, *special])
    home = _home([*general, *special], env)
    home_file = home / USER_FILE
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    of_home: list[_Layer] = []
    with _left_out(problems):
        of_home = _home_layer(home_file, user_file, chosen_by=_place_of_home(special))
    for source, layer in [*general, *of_home, *special]:
        for name, raw in layer.items():
            with _left_out(problems if os.path.isabs(source) else None):
                value = _parse(name, raw, source)
                values[name] = {**values.get(name, {}), **value} if name == "apps" else value
                origin[name] = f"{origin[name]}, {source}" if name == "apps" and name in origin else source
    values["home"] = home
    settings = Settings(
        **values,
        origin=origin,
        user_file=user_file,
        home_file=home_file,
        environment_apps=_parse("apps", environment.get("apps", {}), ENVIRONMENT),
    )
    with _left_out(problems):
        _require_consistent(settings)
    return settings


def _require_consistent(settings: Settings) -> None:
    if settings.max_payload_bytes >= settings.max_body_bytes:
        raise ConfigError(
            f"max_payload_bytes ({settings.max_payload_bytes}) must be less than max_body_bytes"
            f" ({settings.max_body_bytes}): a payload travels in a body"
        )


@contextmanager
def _left_out(problems: list[ConfigError] | None) -> Iterator[None]:
    """What is wrong in here is raised, or added to the problems."""
    try:
        yield
    except ConfigError as error:
        if problems is None:
            raise
        problems.append(error)


def configured_apps(settings: Settings) -> dict[str, ConfiguredApp]:
    """The apps of the settings by name, with the files as they are now. Raises ConfigError if one is wrong."""
    found: dict[str, ConfiguredApp] = {}
    for path in (settings.user_file, settings.home_file):
        for source, layer in _layer(path) if path is not None else ():
            tables = _parse("apps", layer.get("apps", {}), source)
            found |= {name: ConfiguredApp(table, source) for name, table in tables.items()}
    return found | {name: ConfiguredApp(table, ENVIRONMENT) for name, table in settings.environment_apps.items()}


def _layer(path: Path) -> list[_Layer]:
    """What a file says; nothing if it is not there."""
    return [(str(path), _read(path))] if _is_there(path) else []


def _is_there(path: Path) -> bool:
    """Whether there is such a file. A folder in its place is an error, as whoever made it expects it to be read.

    A file in a folder that this user may not enter is not there.
    """
    if os.path.isdir(path):
        raise ConfigError(f"cannot read the settings in {path}: it is a folder, not a file; move it away")
    return os.path.isfile(path)


def _project_file(cwd: str | None) -> Path | None:
    try:
        folder = Path(cwd or os.getcwd())
    except FileNotFoundError:  # the working directory was deleted: there is no project
        return None
    return next((file for parent in (folder, *folder.parents) if _is_there(file := parent / PROJECT_FILE)), None)


def _project_layer(file: Path | None) -> list[_Layer]:
    if file is None:
        return []
    _require_trusted(file)
    return _layer(file)


def _require_no_home(problems: Sequence[ConfigError], file: Path | None, layers: Sequence[_Layer]) -> None:
    """Raises the problem if a file that was left out seems to choose the home, and none of the `layers` does."""
    if file is None or not os.path.isfile(file) or any("home" in values for _, values in layers):
        return
    if re.search(rb"(?m)^\s*[\"']?home\b", file.read_bytes()):
        raise problems[0]


def _home_layer(path: Path, user_file: Path, *, chosen_by: str) -> list[_Layer]:
    """What the file of the home says, unless the user has made the folder of the user file their home.

    A home that a project file has chosen may have come with the project.
    """
    if not _is_there(path) or (os.path.isfile(user_file) and os.path.samefile(path, user_file)):
        return []
    _require_trusted(path)
    layer = _layer(path)
    for _, values in layer:
        if "home" in values:
            raise ConfigError(f"{path} sets `home`, and it is the file of the home {path.parent}; remove that line")
        if "apps" in values and os.path.basename(chosen_by) == PROJECT_FILE:
            raise ConfigError(
                f"{path} lists apps, and {chosen_by} chooses this home: what comes with a project must not say what "
                "the daemon runs; `semtask apps add` adds them"
            )
    return layer


def _place_of_home(layers: Sequence[_Layer]) -> str:
    return next((source for source, values in reversed(layers) if "home" in values), "")


def _of_environment(env: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {BY_ENV[k]: v for k, v in env.items() if k in BY_ENV and v != ""}
    try:
        apps = apps_in(env)
    except ValueError as error:
        raise ConfigError(f"{error} (from {ENVIRONMENT})") from None
    return values | ({"apps": apps} if apps else {})


def _home(layers: Sequence[_Layer], env: Mapping[str, str]) -> Path:
    homes: list[Path] = [_parse("home", values["home"], source) for source, values in layers if "home" in values]
    return homes[-1] if homes else _parse("home", default_home(env), "your home folder")


def _require_trusted(path: Path) -> None:
    """In a folder like /tmp anybody can leave a project file for others to find; root may read all of them."""
    owner = path.stat().st_uid
    if os.geteuid() not in {0, owner} and owner != 0:
        raise ConfigError(f"{path} belongs to another user (uid {owner}), so its settings are not used; move it away")


def _read(path: Path) -> dict[str, Any]:
    import tomllib  # only when there is a file to read

    try:
        values = tomllib.loads(decoded(path.read_bytes()))
    except (OSError, ValueError) as error:  # TOMLDecodeError is a ValueError
        raise ConfigError(f"cannot read the settings in {path}: {error}") from error
    for name, value in values.items():
        if name not in FIELDS:
            from semtask.config.unused import why_no_setting  # only for this message

            raise ConfigError(f"{path}: {why_no_setting(name)}")
        if name == "apps" and path.name == PROJECT_FILE:
            raise ConfigError(
                f"{path} lists apps, and a file that comes with a project must not say what the daemon runs; "
                "`semtask apps add` adds them, or move them to the user file, ~/.config/semtask/config.toml, "
                "or to config.toml in the home"
            )
        # Relative to the file: the working directory may be any folder of the project.
        if FIELDS[name].metadata["kind"] is PATH:
            values[name] = _beside(path, value)
        elif name == "apps" and isinstance(value, dict):
            values[name] = {app: _app_beside(path, table) for app, table in value.items()}
    return values


def _app_beside(file: Path, table: Any) -> Any:
    if not isinstance(table, dict):
        return table
    paths = {key for key in ("directory", "python") if key in table and (key == "directory" or "/" in str(table[key]))}
    return {key: _beside(file, value) if key in paths else value for key, value in table.items()}


def _beside(file: Path, value: Any) -> Any:
    """A path in a file; anything else is judged later."""
    if not isinstance(value, str) or not value:
        return value
    return os.path.join(file.parent, os.path.expanduser(value))


def _parse(name: str, raw: Any, source: str) -> Any:
    spec = FIELDS[name].metadata
    try:
        return spec["kind"].parse(raw)
    except ValueError as error:
        if spec["kind"] is APPS:  # its messages name the table and the key
            raise ConfigError(f"{source}: {error}") from None
        shown = VARIABLES[name] if source == ENVIRONMENT else name
        raise ConfigError(f"{shown} (from {source}) {error}, not {raw!r}") from None
