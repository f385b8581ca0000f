"""The tokens of running jobs: each is good while its claim runs, is known by its digest only, and stored nowhere."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

from semtask.engine.live import Key
from semtask.host.tokens import digest, draw
from semtask.model.scope import Grant, Scope


class JobTokens:
    def __init__(self, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._random_bytes = random_bytes
        self._grants: dict[str, Grant] = {}
        self._digests: dict[Key, str] = {}

    def issue(self, job_id: str, claim_no: int, scopes: Iterable[Scope]) -> str:
        """A new token for this claim."""
        token = draw(self._random_bytes)
        hashed = digest(token.encode())
        self._digests[job_id, claim_no] = hashed
        self._grants[hashed] = Grant(job_id, frozenset(scopes))
        return token

    def revoke(self, key: Key) -> None:
        """From now on the token of this claim opens nothing. It need not have one."""
        hashed = self._digests.pop(key, None)
        if hashed is not None:
            del self._grants[hashed]

    def find(self, hashed: str) -> Grant | None:
        """What the token with this digest gives now."""
        return self._grants.get(hashed)
