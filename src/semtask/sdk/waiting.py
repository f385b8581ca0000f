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
REPORT_AFTER_S = 2.0  # whoever waits for so long wants to know why nothing happens

_STUCK = frozenset({"no_app", "app_failed", "queue_paused", "policy"})  # nothing changes until somebody does something


def wait_for_end(connection: Connection, job_id: str, timeout: float | None) -> JobView:
    """The job once it has ended. Raises TimeoutError after `timeout` seconds; the job goes on."""
    deadline = None if timeout is None else time.monotonic() + timeout
    patience = Patience()
    longest_ms = round(REPORT_AFTER_S * 1000)
    reported = None
    while True:
        left_s = LONGEST_MS / 1000 if deadline is None else deadline - time.monotonic()
        wait_ms = min(max(0, round(left_s * 1000)), longest_ms)
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
        longest_ms = LONGEST_MS
        if (why := why_stuck(job)) is not None and why != reported:
            report(job, why)
            reported = why


def why_stuck(job: JobView) -> str | None:
    """Why nobody can run the job as things are, and what to do; None if it runs, or its turn will come by itself."""
    return job.waiting.text if job.waiting is not None and job.waiting.reason in _STUCK else None


def report(job: JobView, why: str) -> None:
    """A warning of the logger `semtask`; Python prints it to stderr where a program has set up no logging."""
    import logging

    logging.getLogger("semtask").warning("job %s waits: %s", job.job_id, why)


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
