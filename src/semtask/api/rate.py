"""How many requests a second one client may send."""

from __future__ import annotations

import math
from collections.abc import Callable
from http import HTTPStatus

from semtask.api.messages import Refused
from semtask.errors import Throttled

Client = str | int
_MANY = 10_000
_LONGEST_DEBT_S = 60.0


class RateLimit:
    """Lets each client send `per_s` requests a second, and as many in a burst after a pause; 0 sets no limit.

    Of each client only the time is kept until which it has used up its share (GCRA), and only while that lies ahead.
    """

    def __init__(self, per_s: int, monotonic: Callable[[], float]) -> None:
        self._per_s = per_s
        self._monotonic = monotonic
        self._used_until: dict[Client, float] = {}

    def admit(self, client: Client) -> None:
        """Raises Refused (429) if the client has to wait."""
        if not self._per_s:
            return
        now = self._monotonic()
        wait_s = self._used_until.get(client, now) + 1 / self._per_s - (now + 1)
        if wait_s > 1e-9:
            seconds = math.ceil(wait_s)
            error = Throttled(
                f"Too many requests: a client may send {self._per_s} a second (rate_limit_requests).",
                retry_after_ms=math.ceil(wait_s * 1000),
            )
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, error, [(b"retry-after", b"%d" % seconds)])
        self.charge(client, 1)

    def charge(self, client: Client, requests: int) -> None:
        """Count requests that are let in whatever their number, like the others of a batch."""
        if not self._per_s or not requests:
            return
        now = self._monotonic()
        if len(self._used_until) >= _MANY:
            self._used_until = {c: until for c, until in self._used_until.items() if until > now}
        used_until = max(self._used_until.get(client, now), now) + requests / self._per_s
        self._used_until[client] = min(used_until, now + _LONGEST_DEBT_S)
