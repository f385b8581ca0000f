"""Variables of the environment: which ones a job gets, and those of semtask that are no settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# They belong to one job and are no configuration: never passed on.
ENV_JOB_ID = "SEMANTICA_JOB_ID"
ENV_ATTEMPT = "SEMANTICA_ATTEMPT"
ENV_JOB_HOME = "SEMANTICA_JOB_HOME"  # of the daemon that runs it
ENV_TOKEN = "SEMANTICA_TOKEN"  # noqa: S105 - the name of the variable
OF_ONE_JOB = frozenset({ENV_JOB_ID, ENV_ATTEMPT, ENV_JOB_HOME, ENV_TOKEN})
# Read elsewhere, hence known: by clients, by jobs, or by the command line.
OTHER_ENV = OF_ONE_JOB | {"SEMANTICA_RPC_URL", "SEMANTICA_TOKEN_FILE", "SEMANTICA_OUTPUT", "SEMANTICA_DEBUG"}
# Names of later versions. Whoever sets them expects something, so they are not ignored silently.
UNSERVED_ENV = frozenset({"SEMANTICA_STORE"})
_UNSERVED_PREFIX = "SEMANTICA_RATE_LIMIT_"
# What a command may inherit from the one who asked for it.
DEFAULT_ENV_ALLOWLIST = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TMPDIR")


def inherited(env: Mapping[str, str], allowlist: Iterable[str]) -> dict[str, str]:
    """The part of an environment that the allowlist (NAME or PREFIX*) lets through."""
    names = frozenset(allowlist)
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
    return {k: v for k, v in env.items() if (k in names or k.startswith(prefixes)) and k not in OF_ONE_JOB}


def comes_later(variable: str) -> bool:
    """Whether this variable is one that a later version will read."""
    return variable in UNSERVED_ENV or variable.startswith(_UNSERVED_PREFIX)
