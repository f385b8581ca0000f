"""Giving up all that attempts and workers of a former daemon left, before their database is replaced by another one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.leftovers import end_leftovers
from semtask.executors.shim_end import unlocked
from semtask.launch.folder import AttemptFolder


class StillThere(Exception):
    """Processes of former attempts are there and do not end: `what` names them."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def abandon(attempts: AttemptsDir, nonces: Iterable[str], *, patience_s: float) -> None:
    """Wait until nothing of any attempt runs, and make sure that nothing more can start or be reported of them.

    The folder of all attempts gets another identity: a claim of before, in whatever database, then counts as one that
    may have run. `nonces` are of attempts that are known to have run. Blocks; raises StillThere and OSError.
    """
    asyncio.run(_abandon(attempts, nonces, patience_s))


async def _abandon(attempts: AttemptsDir, nonces: Iterable[str], patience_s: float) -> None:
    held = ""
    try:
        async with asyncio.timeout(patience_s):
            for folder in _folders(attempts):
                held = folder.path
                await unlocked(folder)
            for nonce in nonces:
                held = f"attempt {nonce}"
                await end_leftovers(nonce, None, set())
    except TimeoutError:
        raise StillThere(held) from None
    attempts.forget_id()
    for folder in _folders(attempts):
        with folder.locked() as free:
            if not free:  # a launcher that was about to start it, just now
                raise StillThere(folder.path)
            folder.poison()
        with suppress(FileNotFoundError):
            folder.remove()


def _folders(attempts: AttemptsDir) -> Iterator[AttemptFolder]:
    for name in os.listdir(attempts.path):
        owner, _, number = name.rpartition(".")
        if owner and number.isdigit():
            yield attempts.attempt(owner, int(number))
