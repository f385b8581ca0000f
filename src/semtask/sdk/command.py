"""A command as the SDK enqueues it: with the working directory, the umask and the allowed environment of its caller."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET

from semtask.client import calls
from semtask.client.calls import Call
from semtask.config.environment import inherited
from semtask.config.settings import Settings
from semtask.model.identifiers import command_name
from semtask.model.job import ExecutionMode
from semtask.model.scope import Scope
from semtask.protocol.enqueue import CommandPayload, Enqueued, SandboxWish
from semtask.tasks.registry import require_name

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
    """Raises ValueError without a command, and for a wrong option; TypeError for what is no text or path."""
    words = [_text("a word of the command", word) for word in argv]
    if not words or not words[0]:
        raise ValueError("run needs a command, such as run('make', 'test')")
    if stderr not in get_args(Stderr):
        raise ValueError(f"stderr must be one of {', '.join(map(repr, get_args(Stderr)))}, not {stderr!r:.100}")
    payload = CommandPayload(
        command=words[0],
        args=words[1:],
        env=_environment({**inherited(os.environ, settings.env_allowlist), **(env or {})}),
        working_dir=_text("the working directory", os.path.abspath(os.getcwd() if cwd is None else _text("cwd", cwd))),
        umask=_umask(),
        **_standing(),
        stderr=stderr,
        access=_scopes(access),
        sandbox=UNSET if sandbox is None else _sandbox(sandbox),
    )
    if name is not None:
        require_name(name)
    job_type = command_name(words[0]) if name is None else name
    return calls.enqueue(job_type, payload, execution_mode=ExecutionMode.SUBPROCESS, **params)


def _text(what: str, value: StrPath) -> str:
    """A text or a path as what is sent. Neither bytes nor a name that is no UTF-8 can be."""
    text = os.fspath(value)
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str or a path, not {value!r:.100}; os.fsdecode gives one")
    if "\0" in text or not _is_utf8(text):
        raise ValueError(f"{what} must be valid text without NUL: {text!r:.100}")
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not name or "=" in _text("the name of a variable", name):
            raise ValueError(f"{name!r:.100} cannot be the name of a variable")
        if not isinstance(value, str):
            raise TypeError(f"the variable {name!r:.100} must be a str, not {value!r:.100}")
        _text(f"the variable {name!r:.100}", value)
    return dict(env)


def _scopes(access: Sequence[str]) -> list[Scope]:
    if isinstance(access, str):
        raise ValueError(f"access is a list of scopes, such as [{access!r}], not {access!r:.100}")  # of letters
    try:
        return [Scope(scope) for scope in access]
    except ValueError:
        raise ValueError(
            f"access takes {', '.join(repr(scope.value) for scope in Scope)}; not {access!r:.100}"
        ) from None


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


def _standing() -> dict[str, Any]:
    """The niceness, the CPUs and the limits of this process, where somebody has set them."""
    if sys.platform != "linux":
        return {}
    from semtask.host.standing import of_this_process

    return of_this_process().as_payload()


def _umask() -> int:
    """Read, not set and put back: other threads may make files meanwhile."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1], 8) for line in status if line.startswith("Umask:")), 0o022)
