"""A daemon that is being restarted is waited for, instead of failing what waits for a job anyway."""

from __future__ import annotations

import time
from typing import TypeVar

from semtask.client.messages import AsyncSender, Request, Sender
from semtask.errors import DaemonUnavailable, Throttled

R = TypeVar("R")

PATIENCE_S = 15.0
PAUSE_S = 0.1


class Patience:
    """How long a daemon has been missing by now; up to PATIENCE_S are borne."""

    def __init__(self) -> None:
        self._until: float | None = None

    def lose(self, error: Exception) -> None:
        """Raises the error once it has lasted too long."""
        now = time.monotonic()
        self._until = self._until or now + PATIENCE_S
        if now >= self._until:
            raise error


def send_patiently(send: Sender, request: Request[R], *, deadline: float | None = None) -> R:
    """The answer, also over a restart of the daemon. No longer than `deadline` (monotonic) is waited for one."""
    patience = Patience()
    while True:
        try:
            return send(request)
        except (DaemonUnavailable, Throttled) as error:
            if deadline is not None and time.monotonic() >= deadline:
                raise
            patience.lose(error)
        time.sleep(PAUSE_S)


async def asend_patiently(send: AsyncSender, request: Request[R]) -> R:
    """The same for asyncio."""
    import asyncio  # not everybody needs it

    patience = Patience()
    while True:
        try:
            return await send(request)
        except (DaemonUnavailable, Throttled) as error:
            patience.lose(error)
        await asyncio.sleep(PAUSE_S)
