"""Settings and variables that have no effect, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from semtask.config.apps import is_of_app
from semtask.config.environment import comes_later
from semtask.config.settings import FIELDS, PROJECT_FILE, Settings, environment_names
from semtask.errors import suggestion

# The client acts on them itself, or hands them to the daemon that it starts.
_READ_BY_CLIENTS = frozenset({"home", "db_path", "autostart", "env_allowlist", "ctrl_c"})


def misplaced(settings: Settings) -> dict[str, str]:
    """Settings of a project file that have no effect there, as only the daemon reads them; and the file."""
    seen_by_daemon = {str(folder / PROJECT_FILE) for folder in (settings.home, *settings.home.parents)}
    return {
        name: source
        for name, source in settings.origin.items()
        if os.path.basename(source) == PROJECT_FILE and name not in _READ_BY_CLIENTS and source not in seen_by_daemon
    }


def unknown_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """SEMANTICA_* variables that have no effect, and why: "is not served by this version", or a slip of the pen."""
    env = os.environ if env is None else env
    known = environment_names()
    ours = (k for k in sorted(env) if k.startswith("SEMANTICA_") and not is_of_app(k))
    return {k: _why_unknown(k, known) for k in ours if k not in known}


def _why_unknown(variable: str, known: Iterable[str]) -> str:
    if comes_later(variable):
        return "is not served by this version"
    return f"is read by nothing{suggestion(variable, known, alike=0.85)}"  # the prefix alone makes them alike by half


def why_no_setting(name: str) -> str:
    """What to say of a name in a file that is none of a setting."""
    if comes_later(f"SEMANTICA_{name.upper()}"):
        return f"the setting {name!r} is not served by this version"
    return f"there is no setting {name!r}{suggestion(name, FIELDS)}"
