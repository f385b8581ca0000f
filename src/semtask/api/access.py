"""Who asks, and what they may do."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from semtask.errors import ConfigError, Throttled, Unauthorized
from semtask.host.file_version import FileVersion, version_of
from semtask.host.tokens import Token, digest, path_of, read_tokens
from semtask.model.job import ExecutionMode
from semtask.model.scope import ALL_SCOPES, Grant, Scope, held
from semtask.protocol.admin import StartDaemonParams
from semtask.protocol.enqueue import EnqueueManyParams, EnqueueParams
from semtask.protocol.fields import Params
from semtask.protocol.jobs import GetJobParams

log = logging.getLogger("semtask.api")


def _for_ever() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Access:
    """`token` is the name of a named token; None for the user whose daemon it is. `is_good`: whether it is so still.
    `throttled`: the request came too early, and is answered with this.
    """

    scopes: frozenset[Scope]
    token: str | None = None
    is_good: Callable[[], bool] = field(default=_for_ever, compare=False)
    throttled: Throttled | None = field(default=None, compare=False)

    def require(self, scope: Scope, what: str) -> None:
        """Raises Unauthorized, which names the scope, unless it is there."""
        if not self.is_good():  # between the head of a request and its end, or within a batch
            raise Unauthorized(f"the token {self.token!r} has become void", details={"token": self.token})
        if scope not in self.scopes:
            raise Unauthorized(
                f"{what} needs the scope `{scope}`, which the token {self.token!r} has not",
                details={"scope": scope.value, "token": self.token},
            )


OWNER = Access(ALL_SCOPES)


def require_for(params: Params, access: Access) -> None:
    """Raises Unauthorized for parameters that take more than their method does."""
    if isinstance(params, EnqueueParams):
        _require_command([params], access)
    elif isinstance(params, EnqueueManyParams):
        _require_command(params.jobs, access)
    elif isinstance(params, GetJobParams) and "secrets" in params.include:
        access.require(Scope.ADMIN, "seeing the secrets of a job")
    elif isinstance(params, StartDaemonParams) and access.token is not None:
        # A token bounds what its bearer may do here; a daemon of another home would know nothing of it.
        raise Unauthorized("a daemon is started for its user alone, not for the bearer of a token")


def _require_command(jobs: Iterable[EnqueueParams], access: Access) -> None:
    for job in jobs:
        # Without a mode the payload would decide, and what it decides is not known here.
        if job.execution_mode is not ExecutionMode.IN_PROCESS:
            access.require(Scope.COMMAND, "a job that is not said to be a task (execution_mode IN_PROCESS)")
            if access.scopes < ALL_SCOPES:
                _require_grantable(job, access)


def _require_grantable(job: EnqueueParams, access: Access) -> None:
    """Nobody can give a job more than they have."""
    try:
        wanted = job.command.access
    except msgspec.MsgspecError:  # admission says what is wrong with it
        return
    for scope in wanted:
        access.require(scope, f"a job with the access {scope.value!r}")


Grants = Callable[[str], Grant | None]
"""What the token of a running job gives, by its digest."""


def no_grants(_digest: str) -> Grant | None:
    return None


class Credentials:
    """The tokens that are good now. `own` is the one that opens everything; the others are read again when they change.

    A file of tokens that cannot be trusted opens nothing, and the log says why.
    """

    def __init__(self, own: bytes | None, home: Path, now_ms: Callable[[], int], grants: Grants = no_grants) -> None:
        self._own = None if own is None else digest(own)
        self._home = home
        self._now_ms = now_ms
        self._grants = grants
        self._version: FileVersion | None = None
        self._named: dict[str, tuple[str, Token]] = {}  # by digest

    def access(self, given: bytes) -> Access | None:
        """What a token gives; None for one that is unknown, removed or expired."""
        hashed = digest(given)
        if self._own is not None and hmac.compare_digest(hashed, self._own):
            return OWNER
        if (grant := self._grants(hashed)) is not None:
            return Access(held(grant.scopes), f"job:{grant.job_id}", lambda: self._grants(hashed) is grant)
        self._refresh()
        # To find a hash by the time of its look-up tells nothing of the token that it was made of.
        name, token = self._named.get(hashed, ("", None))
        if token is None or (token.expires_at is not None and token.expires_at <= self._now_ms()):
            return None
        return Access(held(token.scopes), name)

    def _refresh(self) -> None:
        version = version_of(path_of(self._home), follow_symlinks=False)
        if version == self._version:
            return
        self._version = version
        try:
            tokens = read_tokens(self._home)
        except ConfigError as error:
            log.warning("no named token is accepted: %s", error.message)
            tokens = {}
        self._named = {token.sha256: (name, token) for name, token in tokens.items()}
