"""Which sandbox levels this machine can give, and why not. Standard library only."""

from __future__ import annotations

import os

from semtask.host import landlock
from semtask.model.sandbox import SandboxLevel

# Not PATH: neither a job nor whoever starts the daemon chooses the program that confines a job.
_FOLDERS = ("/usr/bin", "/bin", "/usr/local/bin", "/run/current-system/sw/bin")


def bubblewrap() -> str | None:
    """The path of bwrap."""
    paths = (os.path.join(folder, "bwrap") for folder in _FOLDERS)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def why_not(level: SandboxLevel, *, daemon_confined: bool) -> str | None:
    """Why it is not available; None if no reason is known yet. `daemon_confined`: the daemon has no_new_privs."""
    if level is SandboxLevel.LANDLOCK:
        if daemon_confined:
            return (
                "the daemon itself runs with no_new_privs (a container, a sandbox, or NoNewPrivileges= of a service), "
                "so at its socket it could not tell a sandboxed job from you"
            )
        return landlock.why_not()
    if level is SandboxLevel.BWRAP and bubblewrap() is None:
        return f"there is no program bwrap in {', '.join(_FOLDERS)}; the package bubblewrap has it"
    return None
