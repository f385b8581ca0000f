"""The settings, one line each, and where their files and folders are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from semtask.config.apps import APPS, APPS_VARIABLE
from semtask.config.environment import DEFAULT_ENV_ALLOWLIST, OTHER_ENV
from semtask.config.kinds import ENV_PATTERNS, PATH, SWITCH, Kind, choice, percent, whole
from semtask.errors import ConfigError

PROJECT_FILE = "semantica.toml"
USER_FILE = "config.toml"


def _setting(default: Any, kind: Kind, doc: str) -> Any:
    unset = {"default_factory": default} if callable(default) else {"default": default}
    return field(**unset, metadata={"kind": kind, "doc": doc})


def default_home(env: Mapping[str, str] | None = None) -> Path:
    """The platform's user data folder for semtask."""
    return user_folder(os.environ if env is None else env, "XDG_DATA_HOME", os.path.join(".local", "share"))


def user_folder(env: Mapping[str, str], variable: str, below_home: str) -> Path:
    """A folder of this user for semtask: below that of an XDG variable, else below HOME. Raises ConfigError."""
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
        default_home, PATH, "folder with the database, logs and sockets"
    )
    db_path: Path | None = _setting(  # noqa: RUF009
        None, PATH, "the database file; default <home>/meta.db"
    )
    tcp: bool = _setting(False, SWITCH, "listen on 127.0.0.1 too (on/off)")
    tcp_auth: str = _setting("token", choice("token", "off"), "who may use the TCP port (token/off)")
    rpc_port: int = _setting(9527, whole(0, 65535), "the TCP port; 0 takes a free one")
    log_format: str = _setting(
        "console", choice("console", "json", pretty="console"), "the daemon's own log (console/json)"
    )
    recovery_window_ms: int = _setting(
        300_000,
        whole(0, 86_400_000),
        "how long a still locked attempt is waited for after a restart before it is shown as kill_failed",
    )
    max_processes: int = _setting(
        lambda: 2 * _cpus(),
        whole(1, 100_000),
        "running commands and sync tasks over all queues; default 2 x CPUs",
    )
    queue_concurrency: int = _setting(
        _cpus,
        whole(1, 100_000),
        "running jobs of a queue that was not configured; default the number of CPUs",
    )
    retry_base_delay_ms: int = _setting(
        1000,
        whole(0, 86_400_000),
        "the first pause before a retry, where the job does not say",
    )
    cpu_throttle_threshold: float = _setting(
        90,
        percent(1, 101),
        "CPU use in percent above which background work pauses; 101 never",
    )
    retention_days: int = _setting(
        7,
        whole(0, 36_500),
        "how long finished jobs and their logs are kept; 0 keeps them forever",
    )
    max_finished_jobs: int = _setting(
        1_000_000, whole(0, 1 << 40), "how many finished jobs are kept at most, the newest; 0 sets no limit"
    )
    max_db_size_mb: int = _setting(
        0,
        whole(0, 1 << 30),
        "above this size of the database the oldest finished jobs go before their time; 0 sets no limit",
    )
    disk_low_mb: int = _setting(
        0,
        whole(0, 1 << 30),
        "below this much free disk space no new jobs are taken; 0: 5 % of the disk, at most 256 MiB",
    )
    shutdown_grace_ms: int = _setting(
        10_000, whole(0, 3_600_000), "how long running jobs may go on after SIGTERM to the daemon"
    )
    log_max_bytes: int = _setting(
        64 * 1024 * 1024,
        whole(65_536, 1 << 50),
        "the disk space one log may take; beyond it the head and the tail are kept",
    )
    max_payload_bytes: int = _setting(10 * 1024 * 1024, whole(1024, 1 << 30), "the largest payload of a job")
    max_body_bytes: int = _setting(11 * 1024 * 1024, whole(4096, 1 << 30), "the largest HTTP body")
    max_connections: int = _setting(1000, whole(8, 100_000), "open connections; above it the oldest idle one is closed")
    rate_limit_requests: int = _setting(
        0,
        whole(0, 1_000_000),
        "requests a second that one client (a token, or a process at the socket) may send; 0 sets no limit",
    )
    async_jobs_per_worker: int = _setting(100, whole(1, 100_000), "async jobs that one worker runs simultaneously")
    worker_start_timeout_ms: int = _setting(
        60_000, whole(100, 3_600_000), "how long a worker may take to import its app"
    )
    worker_idle_ms: int = _setting(
        60_000, whole(0, 86_400_000), "how long a worker without work stays; one per app always does"
    )
    worker_max_jobs: int = _setting(
        50_000, whole(0, 1 << 40), "after so many jobs a worker is replaced; 0 sets no limit"
    )
    worker_max_memory_mb: int = _setting(
        1024, whole(0, 1 << 30), "above this resident memory a worker is replaced after its job; 0 sets no limit"
    )
    inline_result_bytes: int = _setting(
        256 * 1024,
        whole(0, 1 << 30),
        "results of tasks up to this size are stored in the database, larger ones in a file",
    )
    max_result_bytes: int = _setting(64 * 1024 * 1024, whole(1024, 1 << 30), "the largest result of a task")
    max_artifact_bytes: int = _setting(1 << 30, whole(1024, 1 << 50), "the largest artifact of a task")
    max_job_artifact_bytes: int = _setting(4 << 30, whole(1024, 1 << 50), "what all artifacts of a job may take")
    max_job_artifacts: int = _setting(1000, whole(1, 100_000), "how many artifacts a job may keep")
    env_allowlist: tuple[str, ...] = _setting(
        DEFAULT_ENV_ALLOWLIST,
        ENV_PATTERNS,
        "environment variables that a command takes from the caller; NAME or PREFIX*",
    )
    command_policy: Path | None = _setting(  # noqa: RUF009
        None,
        PATH,
        "the policy file for commands, which must be there then; default <home>/commands.toml, which need not",
    )
    sandbox: str = _setting(
        "none",
        choice("none", "limits", "landlock", "bwrap"),
        "the least sandbox of all commands (none/limits/landlock/bwrap); above none no tasks are run",
    )
    autostart: bool = _setting(True, SWITCH, "whether a client starts the daemon when none answers (on/off)")
    ctrl_c: str = _setting(
        "cancel",
        choice("cancel", "detach", "ask"),
        "what Ctrl-C in `semtask run` does: it cancels the job, leaves it running, or asks (cancel/detach/ask)",
    )
    apps: Mapping[str, Mapping[str, str]] = _setting(
        dict, APPS, "[apps.NAME] tables with `module`, `directory` and `python`; not in a project file"
    )
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    # Where they are, or would be; None where their apps are not to be run.
    user_file: Path | None = field(default=None, compare=False)
    home_file: Path | None = field(default=None, compare=False)
    environment_apps: Mapping[str, Mapping[str, str]] = field(default_factory=dict, compare=False)

    def without_apps(self) -> Settings:
        """The same for a daemon that runs none of the configured apps."""
        return replace(self, apps={}, user_file=None, home_file=None, environment_apps={})

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


# By their names in a file.
FIELDS = {f.name: f for f in fields(Settings) if f.metadata}
VARIABLES = {
    name: APPS_VARIABLE if f.metadata["kind"] is APPS else f"SEMANTICA_{name.upper()}" for name, f in FIELDS.items()
}
BY_ENV = {variable: name for name, variable in VARIABLES.items() if variable != APPS_VARIABLE}


def documented() -> list[tuple[str, str, str]]:
    """(name in a file, environment variable, what it means) of every setting."""
    return [(name, VARIABLES[name], f.metadata["doc"]) for name, f in FIELDS.items()]


def environment_names() -> list[str]:
    """Every environment variable that this version reads."""
    return sorted({*BY_ENV, *OTHER_ENV})


def schema() -> dict[str, Any]:
    """The settings files as JSON Schema, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Settings of semtask: {USER_FILE} of the user or of a home, {PROJECT_FILE} of a project",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {"description": f.metadata["doc"], **f.metadata["kind"].schema} for name, f in FIELDS.items()
        },
    }
