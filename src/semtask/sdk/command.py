"""A command as the SDK enqueues it: with the working directory, the umask and the allowed environment of its caller."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from semtask.client import calls
from semtask.client.calls import Call
from semtask.config import Settings, inherited
from semtask.model.job import ExecutionMode
from semtask.model.scope import Scope
from semtask.protocol.messages import CommandPayload, Enqueued

StrPath: TypeAlias = str | os.PathLike[str]
Stderr: TypeAlias = Literal["merged", "split"]


def command_call(
    argv: Sequence[StrPath],
    settings: Settings,
    params: dict[str, Any],
    *,
    env: Mapping[str, str] | None,
    cwd: StrPath | None,
    stderr: Stderr,
    name: str | None,
    access: Sequence[str],
) -> Call[Enqueued]:
    """Raises ValueError without a command, or for an `access` that is no scope."""
    if not argv or not os.fspath(argv[0]):
        raise ValueError("run needs a command, such as run('make', 'test')")
    words = [os.fspath(word) for word in argv]
    payload = CommandPayload(
        command=words[0],
        args=words[1:],
        env=inherited(os.environ, settings.env_allowlist) | dict(env or {}),
        working_dir=os.path.abspath(os.getcwd() if cwd is None else cwd),
        umask=_umask(),
        stderr=stderr,
        access=[Scope(scope) for scope in access],
    )
    job_type = name or os.path.basename(words[0])[:128] or "command"
    return calls.enqueue(job_type, payload, execution_mode=ExecutionMode.SUBPROCESS, **params)


def _umask() -> int:
    """Read, not set and put back: other threads may make files meanwhile."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1], 8) for line in status if line.startswith("Umask:")), 0o022)
