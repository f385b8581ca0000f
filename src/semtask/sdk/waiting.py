"""Waiting for the end of jobs, over a restart of the daemon."""

from __future__ import annotations

import time

from semtask.client import calls
from semtask.errors import DaemonUnavailable, Throttled
from semtask.model.state import FINAL
from semtask.protocol.jobs import JobView
from semtask.sdk.connection import Connection

PATIENCE_S = 15.0
PAUSE_S = 0.1
LONGEST_MS = 60_000


def wait_for_end(connection: Connection, job_id: str, timeout: float | None) -> JobView:
    """The job once it has ended. Raises TimeoutError after `timeout` seconds; the job goes on."""
    deadline = None if timeout is None else time.monotonic() + timeout
    patience = Patience()
    while True:
        left_s = LONGEST_MS / 1000 if deadline is None else deadline - time.monotonic()
        wait_ms = min(max(0, round(left_s * 1000)), LONGEST_MS)
        try:
            waited = connection.send(calls.wait([job_id], timeout_ms=wait_ms, include=["result"]))
        except (DaemonUnavailable, Throttled) as error:
            if left_s <= 0:
                raise
            patience.lose(error)
            time.sleep(PAUSE_S)
            continue
        patience.renew()
        job = waited.jobs[0]
        if job.state in FINAL:
            return job
        if deadline is not None and time.monotonic() >= deadline:
            raise still_going(job_id, timeout, job)


def still_going(job_id: str, timeout: float | None, job: JobView | None = None) -> TimeoutError:
    why = f"it waits: {job.waiting.text}" if job is not None and job.waiting else "it goes on"
    return TimeoutError(f"job {job_id} has not ended within {timeout:g} s; {why}")


class Patience:
    """A daemon that is being restarted is waited for, PATIENCE_S at most."""

    def __init__(self) -> None:
        self._until: float | None = None

    def lose(self, error: Exception) -> None:
        """Raises the error once it has lasted too long."""
        now = time.monotonic()
        self._until = self._until or now + PATIENCE_S
        if now >= self._until:
            raise error

    def renew(self) -> None:
        self._until = None
