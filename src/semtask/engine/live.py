"""The attempts of this daemon that have not ended, of commands and of tasks alike."""

from __future__ import annotations

import asyncio

from semtask.model.job import Job
from semtask.telemetry.logs import about

Key = tuple[str, int]


class LiveAttempts:
    """From the claim to the committed finish. An attempt *has ended* before, as soon as its outcome is known."""

    def __init__(self) -> None:
        self._jobs: dict[Key, Job] = {}
        self._running: set[Key] = set()
        self._deadlines: dict[Key, int] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def add(self, job: Job) -> None:
        key = (job.job_id, job.claim_no)
        self._jobs[key] = job
        self._running.add(key)
        if job.deadline is not None:
            self._deadlines[key] = job.deadline
        self._empty.clear()

    def ended(self, key: Key) -> None:
        """Its outcome is known; it still has to be stored."""
        self._running.discard(key)

    def remove(self, key: Key) -> None:
        self._jobs.pop(key, None)
        self._running.discard(key)
        self._deadlines.pop(key, None)
        if not self._jobs:
            self._empty.set()

    def __contains__(self, key: Key) -> bool:
        return key in self._jobs

    def is_live(self, key: Key) -> bool:
        """Whether the attempt has not ended yet, as far as is known; afterwards its end may still have to be stored."""
        return key in self._running

    def get(self, key: Key) -> Job | None:
        return self._jobs.get(key)

    def about(self, key: Key) -> dict[str, object]:
        """`extra=` for a line about an attempt."""
        job = self._jobs.get(key)
        return {"job_id": key[0], "claim_no": key[1]} if job is None else about(job)

    @property
    def next_deadline(self) -> int | None:
        """The earliest deadline (epoch ms) of what runs and is not being stopped for it yet."""
        return min(self._deadlines.values(), default=None)

    def take_overdue(self, now: int) -> list[Key]:
        """The attempts whose deadline has come; each is named once."""
        overdue = [key for key, deadline in self._deadlines.items() if deadline <= now]
        for key in overdue:
            del self._deadlines[key]
        return overdue

    @property
    def keys(self) -> list[Key]:
        return list(self._jobs)

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no attempt is left; False when the time is over first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return not self._jobs
        return True
