"""The least number of open files with which a daemon works."""

from __future__ import annotations

import resource

from semtask.errors import StartupError

LEAST_OPEN_FILES = 40  # of each process; with it commands and tasks run, few at a time


def require_open_files() -> None:
    """Raises StartupError below LEAST_OPEN_FILES: nothing would ever run, and nobody would know why."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_OPEN_FILES:
        shown = "no limit" if hard == resource.RLIM_INFINITY else hard
        raise StartupError(
            f"a process may open {soft} files here, and a daemon needs {LEAST_OPEN_FILES}, better 1024:"
            f" `ulimit -n 1024` before `semtask up` (the hard limit is {shown})"
        )
