"""Reads the settings: defaults < user file < project file < environment < flags. Unset is not default.

One daemon serves all projects of its home, so what only the daemon reads has no effect in a project file: it belongs
to the user file. `config.unused` tells of it.

The whole package needs the standard library only, and is cheap to import: the command line reads its settings here
before every request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semtask.config.apps import APPS
from semtask.config.kinds import PATH
from semtask.config.settings import BY_ENV, FIELDS, PROJECT_FILE, USER_FILE, Settings, default_home, user_folder
from semtask.errors import ConfigError


def load(
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    *,
    cwd: str | None = None,
) -> Settings:
    """The settings in force. Raises ConfigError with the place of the first bad value."""
    env = os.environ if env is None else env
    layers: list[tuple[str, Mapping[str, Any]]] = []
    user_file, files = _files(env, cwd)
    layers += [(str(path), _read(path)) for path in files]
    layers.append(("the environment", {BY_ENV[k]: v for k, v in env.items() if k in BY_ENV and v != ""}))
    layers.append(("the command line", {k: v for k, v in (flags or {}).items() if v is not None}))
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, layer in layers:
        for name, raw in layer.items():
            values[name] = _parse(name, raw, source)
            origin[name] = source
    if "home" not in values:
        values["home"] = default_home(env)
    settings = Settings(**values, origin=origin, user_file=user_file)
    if settings.max_payload_bytes >= settings.max_body_bytes:
        raise ConfigError(
            f"max_payload_bytes ({settings.max_payload_bytes}) must be less than max_body_bytes"
            f" ({settings.max_body_bytes}): a payload travels in a body"
        )
    return settings


def configured_apps(user_file: Path) -> Mapping[str, Mapping[str, str]]:
    """The apps of the user file as it is now. Raises ConfigError if it cannot be read or is wrong."""
    tables = _read(user_file).get("apps", {}) if os.path.isfile(user_file) else {}
    found: Mapping[str, Mapping[str, str]] = _parse("apps", tables, str(user_file))
    return found


def _files(env: Mapping[str, str], cwd: str | None) -> tuple[Path, list[Path]]:
    """Where the user file belongs, and the files that are there, in the order in which they are read."""
    user_file = user_folder(env, "XDG_CONFIG_HOME", ".config") / USER_FILE
    found = [user_file] if os.path.isfile(user_file) else []  # False, too, in a folder that this user may not enter
    try:
        folder = Path(cwd or os.getcwd())
    except FileNotFoundError:  # the working directory was deleted: there is no project
        return user_file, found
    for parent in (folder, *folder.parents):
        if os.path.isfile(parent / PROJECT_FILE):
            _require_trusted(parent / PROJECT_FILE)
            return user_file, [*found, parent / PROJECT_FILE]
    return user_file, found


def _require_trusted(path: Path) -> None:
    """In a folder like /tmp anybody can leave a project file for others to find; root may read all of them."""
    owner = path.stat().st_uid
    if os.geteuid() not in {0, owner} and owner != 0:
        raise ConfigError(f"{path} belongs to another user (uid {owner}), so its settings are not used; move it away")


def _read(path: Path) -> dict[str, Any]:
    import tomllib  # only when there is a file to read

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {error}") from error
    for name, value in values.items():
        if name not in FIELDS:
            from semtask.config.unused import why_no_setting  # only for this message

            raise ConfigError(f"{path}: {why_no_setting(name)}")
        if name == "apps" and path.name == PROJECT_FILE:
            raise ConfigError(
                f"{path} lists apps, and a file that comes with a project must not say what the daemon runs; "
                "`semtask apps add` adds them, or move them to the user file, ~/.config/semtask/config.toml"
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
        shown = spec["env"] if source == "the environment" and spec["env"] else name
        raise ConfigError(f"{shown} (from {source}) {error}, not {raw!r}") from None
