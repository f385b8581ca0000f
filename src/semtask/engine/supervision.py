"""Services that run as long as the daemon does: one that crashes is started again, a limited number of times."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("semtask.engine")

FIRST_PAUSE_S = 1.0
MAX_FAILURES = 6
STEADY_S = 60.0  # what has run for so long has not failed again and again


class ServiceFailed(Exception):
    """A service of the daemon crashes again and again. Only a new process may help."""


async def supervised(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work until it ends by itself. After a crash it is started again, after 1, 2, 4, 8 and 16 s.

    At the sixth crash in a row (MAX_FAILURES) the exception handler of the loop gets a ServiceFailed: the owner of the
    loop ends the process.
    """
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        began = loop.time()
        try:
            await work()
            return
        except Exception as error:
            failures = failures + 1 if loop.time() - began < STEADY_S else 1
            if failures >= MAX_FAILURES:
                log.exception("%s failed %d times in a row", name, failures)
                failed = ServiceFailed(f"{name} failed {failures} times in a row, the last time: {error!r}")
                loop.call_exception_handler({"message": str(failed), "exception": failed})
                return
            pause = FIRST_PAUSE_S * 2 ** (failures - 1)
            log.exception("%s failed and is started again in %g s", name, pause)
        await asyncio.sleep(pause)
