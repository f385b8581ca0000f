"""The exit code of `run` and `wait --exit-status`: what the job's own would have been."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semtask.protocol.jobs import JobView

ENGINE_FAILED = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127
CANCELLED = 143  # as ended by SIGTERM

_BY_CAUSE = {
    "timeout": 124,
    "deadline": 124,
    "exception": 1,
    "oom": 137,
    "interrupted": ENGINE_FAILED,
    "worker_crash": ENGINE_FAILED,
    "quarantined": ENGINE_FAILED,
    "log_limit": ENGINE_FAILED,
    "bad_payload": ENGINE_FAILED,
}
_BY_STATE = {"DONE": 0, "CANCELLED": CANCELLED, "SUPERSEDED": 75, "SKIPPED_TTL": 75, "SKIPPED_DEADLINE": 124}


def exit_code(job: JobView) -> int:
    """For a job that has ended; of a command that could not be started the payload tells why."""
    if job.state in _BY_STATE:
        return _BY_STATE[job.state]
    cause = job.end_cause or ""
    if cause in _BY_CAUSE:
        return _BY_CAUSE[cause]
    if cause == "spawn_failed":
        return _of_failed_start(job.payload or {})
    if job.signal:
        return 128 + int(job.signal)
    return int(job.exit_code or 1)


def _of_failed_start(payload: dict[str, Any]) -> int:
    """127 for a program that is not there, 126 for one that may not be executed, as in a shell."""
    command = str(payload.get("command", ""))
    folder = str(payload.get("working_dir") or "/")
    path = (payload.get("env") or {}).get("PATH", os.defpath)
    if "/" in command:
        places = [os.path.join(folder, command)]
    else:
        places = [os.path.join(folder, part or ".", command) for part in path.split(os.pathsep)]
    found = [place for place in places if os.path.exists(place)]
    if not found:
        return NOT_FOUND
    return ENGINE_FAILED if any(shutil.which(place) for place in found) else NOT_EXECUTABLE
