"""Settings: defaults < user file < project file < environment < flags. Unset is not default.

One daemon serves all projects of its home, so what only the daemon reads has no effect in a project file: it belongs
to the user file. `misplaced` tells of it.

Standard library only, and cheap to import: the command line reads its settings here before every request.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from semtask.errors import ConfigError

PROJECT_FILE = "semantica.toml"
USER_FILE = "config.toml"

# What a command may inherit from the one who asked for it.
DEFAULT_ENV_ALLOWLIST = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TMPDIR")


@dataclass(frozen=True)
class _Kind:
    """What values a setting takes: `parse` raises ValueError for others; `schema` says it as JSON Schema."""

    parse: Callable[[Any], Any]
    schema: Mapping[str, Any]


def _whole(low: int, high: int) -> _Kind:
    def parse(value: Any) -> int:
        if isinstance(value, bool):
            raise ValueError("must be a whole number")
        try:
            number = int(str(value))
        except ValueError:
            raise ValueError("must be a whole number") from None
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    return _Kind(parse, {"type": "integer", "minimum": low, "maximum": high})


def _parse_switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in {"on", "true", "yes", "1"}:
        return True
    if text in {"off", "false", "no", "0"}:
        return False
    raise ValueError("must be on or off")


def _choice(*choices: str) -> _Kind:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return _Kind(parse, {"enum": list(choices)})


def _parse_path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise ValueError("must be a path")
    return Path(os.path.abspath(os.path.expanduser(os.fspath(value))))


def _parse_env_patterns(value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(_is_env_pattern(item) for item in items):
        raise ValueError("must be a list of variable names, NAME or PREFIX*")
    return tuple(item.strip() for item in items)


def _is_env_pattern(item: Any) -> bool:
    return isinstance(item, str) and item.strip().removesuffix("*").replace("_", "a").isalnum()


_switch = _Kind(_parse_switch, {"enum": [True, False, "on", "off"]})
_path = _Kind(_parse_path, {"type": "string", "minLength": 1})
_env_patterns = _Kind(_parse_env_patterns, {"type": "array", "items": {"type": "string", "minLength": 1}})


_APP_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_APP_MODULE = re.compile(rf"{_DOTTED}:{_DOTTED}")
_APP_KEYS = ("module", "directory", "python")


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
        app = {"module": app_module(table["module"]), "directory": str(_parse_path(table["directory"]))}
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if "python" in table:
        if "/" not in table["python"]:
            raise ValueError(f"{place}: python must be the path of an interpreter, not {table['python']!r}")
        app["python"] = str(_parse_path(table["python"]))  # its link is not followed: it tells which virtualenv it is
    return app


_text = {"type": "string", "minLength": 1}
_apps = _Kind(
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


def _setting(default: Any, kind: _Kind, doc: str, env: str | None = None) -> Any:
    unset = {"default_factory": default} if callable(default) else {"default": default}
    return field(**unset, metadata={"kind": kind, "doc": doc, "env": env})


def default_home(env: Mapping[str, str] | None = None) -> Path:
    """The platform's user data folder for semtask."""
    return _user_folder(os.environ if env is None else env, "XDG_DATA_HOME", os.path.join(".local", "share"))


def _user_folder(env: Mapping[str, str], variable: str, below_home: str) -> Path:
    base = env.get(variable, "")
    if not os.path.isabs(base):
        base = os.path.join(env.get("HOME") or os.path.expanduser("~"), below_home)
    if not os.path.isabs(base):
        raise ConfigError("cannot tell where your home folder is; set HOME, or SEMANTICA_HOME to a folder for semtask")
    return Path(base) / "semtask"


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of semtask. `origin` says where each value came from."""

    home: Path = _setting(  # noqa: RUF009 - a dataclass field, as below
        default_home, _path, "folder with the database, logs and sockets", "SEMANTICA_HOME"
    )
    db_path: Path | None = _setting(  # noqa: RUF009
        None, _path, "the database file; default <home>/meta.db", "SEMANTICA_DB_PATH"
    )
    tcp: bool = _setting(False, _switch, "listen on 127.0.0.1 too (on/off)", "SEMANTICA_TCP")
    tcp_auth: str = _setting(
        "token", _choice("token", "off"), "who may use the TCP port (token/off)", "SEMANTICA_TCP_AUTH"
    )
    rpc_port: int = _setting(9527, _whole(0, 65535), "the TCP port; 0 takes a free one", "SEMANTICA_RPC_PORT")
    log_format: str = _setting(
        "console", _choice("console", "json"), "the daemon's own log (console/json)", "SEMANTICA_LOG_FORMAT"
    )
    recovery_window_ms: int = _setting(
        300_000,
        _whole(0, 86_400_000),
        "how long a still locked attempt is waited for after a restart before it is shown as kill_failed",
        "SEMANTICA_RECOVERY_WINDOW_MS",
    )
    max_processes: int = _setting(
        lambda: 2 * _cpus(),
        _whole(1, 100_000),
        "running commands and sync tasks over all queues; default 2 x CPUs",
        "SEMANTICA_MAX_PROCESSES",
    )
    queue_concurrency: int = _setting(
        _cpus,
        _whole(1, 100_000),
        "running jobs of a queue that was not configured; default the number of CPUs",
    )
    retry_base_delay_ms: int = _setting(
        1000,
        _whole(0, 86_400_000),
        "the first pause before a retry, where the job does not say",
        "SEMANTICA_RETRY_BASE_DELAY_MS",
    )
    cpu_throttle_threshold: int = _setting(
        90,
        _whole(1, 101),
        "CPU use in percent above which background work pauses; 101 never",
        "SEMANTICA_CPU_THROTTLE_THRESHOLD",
    )
    retention_days: int = _setting(
        7,
        _whole(0, 36_500),
        "how long finished jobs and their logs are kept; 0 keeps them for ever",
        "SEMANTICA_RETENTION_DAYS",
    )
    max_finished_jobs: int = _setting(
        1_000_000, _whole(0, 1 << 40), "how many finished jobs are kept at most, the newest; 0 sets no limit"
    )
    max_db_size_mb: int = _setting(
        0,
        _whole(0, 1 << 30),
        "above this size of the database the oldest finished jobs go before their time; 0 sets no limit",
        "SEMANTICA_MAX_DB_SIZE_MB",
    )
    disk_low_mb: int = _setting(
        0,
        _whole(0, 1 << 30),
        "below this much free disk space no new jobs are taken; 0: 5 % of the disk, at most 256 MiB",
        "SEMANTICA_DISK_LOW_MB",
    )
    shutdown_grace_ms: int = _setting(
        10_000, _whole(0, 3_600_000), "how long running jobs may go on after SIGTERM to the daemon"
    )
    log_max_bytes: int = _setting(
        64 * 1024 * 1024,
        _whole(65_536, 1 << 50),
        "the disk space one log may take; beyond it the head and the tail are kept",
    )
    max_payload_bytes: int = _setting(10 * 1024 * 1024, _whole(1024, 1 << 30), "the largest payload of a job")
    max_body_bytes: int = _setting(11 * 1024 * 1024, _whole(4096, 1 << 30), "the largest HTTP body")
    max_connections: int = _setting(
        1000, _whole(8, 100_000), "open connections; above it the oldest idle one is closed"
    )
    rate_limit_requests: int = _setting(
        0,
        _whole(0, 1_000_000),
        "requests a second that one client (a token, or a process at the socket) may send; 0 sets no limit",
        "SEMANTICA_RATE_LIMIT_REQUESTS",
    )
    async_jobs_per_worker: int = _setting(100, _whole(1, 100_000), "async jobs that one worker runs at once")
    worker_start_timeout_ms: int = _setting(
        60_000, _whole(100, 3_600_000), "how long a worker may take to import its app"
    )
    worker_idle_ms: int = _setting(
        60_000, _whole(0, 86_400_000), "how long a worker without work stays; one per app always does"
    )
    worker_max_jobs: int = _setting(
        50_000, _whole(0, 1 << 40), "after so many jobs a worker is replaced; 0 sets no limit"
    )
    worker_max_memory_mb: int = _setting(
        1024, _whole(0, 1 << 30), "above this resident memory a worker is replaced after its job; 0 sets no limit"
    )
    inline_result_bytes: int = _setting(
        256 * 1024, _whole(0, 1 << 30), "results of tasks up to this size stand in the database, larger ones in a file"
    )
    max_result_bytes: int = _setting(64 * 1024 * 1024, _whole(1024, 1 << 30), "the largest result of a task")
    env_allowlist: tuple[str, ...] = _setting(
        DEFAULT_ENV_ALLOWLIST,
        _env_patterns,
        "environment variables that a command takes from the caller; NAME or PREFIX*",
    )
    command_policy: Path | None = _setting(  # noqa: RUF009
        None,
        _path,
        "the policy file for commands, which must be there then; default <home>/commands.toml, which need not",
        "SEMANTICA_COMMAND_POLICY",
    )
    sandbox: str = _setting(
        "none",
        _choice("none", "limits", "landlock", "bwrap"),
        "the least sandbox of all commands (none/limits/landlock/bwrap); above none no tasks are run",
        "SEMANTICA_SANDBOX",
    )
    autostart: bool = _setting(
        True, _switch, "whether a client starts the daemon when none answers (on/off)", "SEMANTICA_AUTOSTART"
    )
    apps: Mapping[str, Mapping[str, str]] = _setting(
        dict, _apps, "[apps.NAME] tables with `module`, `directory` and `python`; in the user file only"
    )
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    user_file: Path | None = field(default=None, compare=False)  # where it is, or would be

    @property
    def database(self) -> Path:
        return self.db_path or self.home / "meta.db"

    @property
    def run_dir(self) -> Path:
        return self.home / "run"

    @property
    def socket(self) -> Path:
        return self.run_dir / "rpc.sock"

    @property
    def token_file(self) -> Path:
        return self.run_dir / "token"

    @property
    def command_policy_file(self) -> Path:
        return self.command_policy or self.home / "commands.toml"

    @property
    def protected(self) -> tuple[Path, ...]:
        """What no sandboxed command may reach: the home, the database, and what says which code the daemon runs."""
        files = (self.command_policy_file, *([self.user_file.parent] if self.user_file else []))
        return (self.home, self.database.parent, *files)

    @property
    def attempts_dir(self) -> Path:
        return self.home / "attempts"

    @property
    def artifacts_dir(self) -> Path:
        return self.home / "artifacts"

    @property
    def logs_dir(self) -> Path:
        return self.home / "logs"


_FIELDS = {f.name: f for f in fields(Settings) if f.metadata}
_BY_ENV = {f.metadata["env"]: name for name, f in _FIELDS.items() if f.metadata["env"]}
# The client acts on them itself, or hands them to the daemon that it starts.
_READ_BY_CLIENTS = frozenset({"home", "db_path", "autostart", "env_allowlist"})
# They belong to one job and are no configuration: never passed on.
ENV_JOB_ID = "SEMANTICA_JOB_ID"
ENV_ATTEMPT = "SEMANTICA_ATTEMPT"
ENV_TOKEN = "SEMANTICA_TOKEN"  # noqa: S105 - the name of the variable
OF_ONE_JOB = frozenset({ENV_JOB_ID, ENV_ATTEMPT, ENV_TOKEN})
# Read elsewhere, hence known: by clients, by jobs, or by the command line.
OTHER_ENV = OF_ONE_JOB | {"SEMANTICA_RPC_URL", "SEMANTICA_TOKEN_FILE", "SEMANTICA_OUTPUT", "SEMANTICA_DEBUG"}
# Names of later versions. Whoever sets them expects something, so they are not passed over in silence.
UNSERVED_ENV = frozenset({"SEMANTICA_STORE"})
_UNSERVED_PREFIX = "SEMANTICA_RATE_LIMIT_"


def documented() -> list[tuple[str, str | None, str]]:
    """(name in a file, environment variable or None, what it means) of every setting."""
    return [(name, f.metadata["env"], f.metadata["doc"]) for name, f in _FIELDS.items()]


def schema() -> dict[str, Any]:
    """The settings files as JSON Schema, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Settings of semtask: {USER_FILE} of the user, {PROJECT_FILE} of a project",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {"description": f.metadata["doc"], **f.metadata["kind"].schema} for name, f in _FIELDS.items()
        },
    }


def misplaced(settings: Settings) -> dict[str, str]:
    """Settings of a project file that have no effect there, as only the daemon reads them; and the file."""
    seen_by_daemon = {str(folder / PROJECT_FILE) for folder in (settings.home, *settings.home.parents)}
    return {
        name: source
        for name, source in settings.origin.items()
        if os.path.basename(source) == PROJECT_FILE and name not in _READ_BY_CLIENTS and source not in seen_by_daemon
    }


def environment_names() -> list[str]:
    """Every environment variable that this version reads."""
    return sorted({*_BY_ENV, *OTHER_ENV})


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
    layers.append(("the environment", {_BY_ENV[k]: v for k, v in env.items() if k in _BY_ENV and v != ""}))
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
    apps: Mapping[str, Mapping[str, str]] = _parse("apps", tables, str(user_file))
    return apps


def inherited(env: Mapping[str, str], allowlist: Iterable[str]) -> dict[str, str]:
    """The part of an environment that the allowlist (NAME or PREFIX*) lets through."""
    names = frozenset(allowlist)
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
    return {k: v for k, v in env.items() if (k in names or k.startswith(prefixes)) and k not in OF_ONE_JOB}


def unknown_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """SEMANTICA_* variables that have no effect, and why: "is not served by this version", or a slip of the pen."""
    env = os.environ if env is None else env
    known = environment_names()
    return {k: _why_unknown(k, known) for k in sorted(env) if k.startswith("SEMANTICA_") and k not in known}


def _why_unknown(variable: str, known: Iterable[str]) -> str:
    if _comes_later(variable):
        return "is not served by this version"
    return f"is read by nothing{suggestion(variable, known, alike=0.85)}"  # the prefix alone makes them alike by half


def _why_no_setting(name: str) -> str:
    if _comes_later(f"SEMANTICA_{name.upper()}"):
        return f"the setting {name!r} is not served by this version"
    return f"there is no setting {name!r}{suggestion(name, _FIELDS)}"


def _comes_later(variable: str) -> bool:
    return variable in UNSERVED_ENV or variable.startswith(_UNSERVED_PREFIX)


def _files(env: Mapping[str, str], cwd: str | None) -> tuple[Path, list[Path]]:
    """Where the user file belongs, and the files that are there, in the order in which they are read."""
    user_file = _user_folder(env, "XDG_CONFIG_HOME", ".config") / USER_FILE
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
        if name not in _FIELDS:
            raise ConfigError(f"{path}: {_why_no_setting(name)}")
        if name == "apps" and path.name == PROJECT_FILE:
            raise ConfigError(
                f"{path} lists apps, and a file that comes with a project must not say what the daemon runs; "
                "`semtask apps add` adds them, or move them to the user file, ~/.config/semtask/config.toml"
            )
        # Relative to the file: the working directory may be any folder of the project.
        if _FIELDS[name].metadata["kind"] is _path:
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
    spec = _FIELDS[name].metadata
    try:
        return spec["kind"].parse(raw)
    except ValueError as error:
        if spec["kind"] is _apps:  # its messages name the table and the key
            raise ConfigError(f"{source}: {error}") from None
        shown = spec["env"] if source == "the environment" and spec["env"] else name
        raise ConfigError(f"{shown} (from {source}) {error}, not {raw!r}") from None


def suggestion(name: str, known: Iterable[str], *, alike: float = 0.6) -> str:
    """' (did you mean ...?)', or nothing."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=alike)
    return f" (did you mean {close[0]!r}?)" if close else ""


def require_linux() -> None:
    """Raises ConfigError elsewhere: the supervision of processes is written for Linux."""
    if sys.platform != "linux":
        raise ConfigError(f"semtask runs its daemon on Linux only for now, and this is {sys.platform}")
