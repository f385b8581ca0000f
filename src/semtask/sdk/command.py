"""A command as the SDK enqueues it: with the working directory, the umask and the allowed environment of its caller."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET

from semtask.client import calls
from semtask.client.calls import Call
from semtask.config.environment import inherited
from semtask.config.settings import Settings
from semtask.model.job import ExecutionMode
from semtask.model.scope import Scope
from semtask.protocol.enqueue import CommandPayload, Enqueued, SandboxWish

StrPath: TypeAlias = str | os.PathLike[str]
Stderr: TypeAlias = Literal["merged", "split"]
Wish: TypeAlias = str | Mapping[str, Any]


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
    sandbox: Wish | None,
) -> Call[Enqueued]:
    """Raises ValueError without a command, or for an `access` that is no scope, or a `sandbox` that is none."""
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
        sandbox=UNSET if sandbox is None else _sandbox(sandbox),
    )
    job_type = name or os.path.basename(words[0])[:128] or "command"
    return calls.enqueue(job_type, payload, execution_mode=ExecutionMode.SUBPROCESS, **params)


def _sandbox(wish: Wish) -> SandboxWish:
    """Relative paths are those of the caller."""
    fields: dict[str, Any] = {"level": wish} if isinstance(wish, str) else dict(wish)
    for name in ("read", "write"):
        if name in fields:
            fields[name] = [os.path.abspath(os.fspath(path)) for path in fields[name]]
    try:
        return msgspec.convert(fields, SandboxWish)
    except msgspec.ValidationError as error:
        raise ValueError(f"the sandbox {wish!r} is not valid: {error}") from None


def _umask() -> int:
    """Read, not set and put back: other threads may make files meanwhile."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1], 8) for line in status if line.startswith("Umask:")), 0o022)
