"""Removing the folders of finished attempts: some at a time and off the loop, as a file system may take its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from semtask.engine.background import Background

log = logging.getLogger("semtask.janitor")

PAUSE_S = 0.05

Attempt = tuple[str, int]  # job_id, claim_no


class Removals:
    def __init__(self, remove: Callable[[str, int], None], background: Background) -> None:
        self._remove = remove
        self._background = background
        self._waiting: list[Attempt] = []

    def add(self, job_id: str, claim_no: int) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_later(PAUSE_S, self.flush)
        self._waiting.append((job_id, claim_no))

    def flush(self) -> None:
        """Begin with what waits, without the pause."""
        if self._waiting:
            batch, self._waiting = self._waiting, []
            self._background.spawn(asyncio.to_thread(self._remove_all, batch), "removing attempt folders")

    def _remove_all(self, batch: Sequence[Attempt]) -> None:
        for job_id, claim_no in batch:
            try:
                self._remove(job_id, claim_no)
            except OSError as error:
                log.warning("what attempt %d left on disk stays: %s", claim_no, error, extra={"job_id": job_id})
