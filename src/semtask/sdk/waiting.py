"""Waiting for the end of one job, and a warning if nobody can run it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from semtask.client.waiting import wait_for_ends
from semtask.model.state import FINAL
from semtask.protocol.jobs import JobView
from semtask.sdk.connection import Connection

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from semtask.client.shared_waits import SharedWaits

_STUCK = frozenset({"no_app", "app_failed", "queue_paused", "policy"})  # nothing changes until somebody does something


def wait_for_end(connection: Connection, job_id: str, timeout: float | None) -> JobView:
    """The job once it has ended. Raises TimeoutError after `timeout` seconds; the job goes on."""
    deadline = None if timeout is None else time.monotonic() + timeout
    waited = wait_for_ends(connection.answer, [job_id], StuckJobs().report, deadline=deadline, with_results=True)
    (job,) = waited.jobs
    if job.state not in FINAL:
        raise _still_going(job_id, timeout, job)
    return job


async def await_end(connection: Connection, job_id: str, timeout: float | None) -> JobView:
    """The same on an event loop, where all that wait share a few requests."""
    import asyncio  # not everybody needs it

    try:
        async with asyncio.timeout(timeout):
            return await _shared_of(connection).ended(job_id)
    except TimeoutError:
        raise _still_going(job_id, timeout) from None


class StuckJobs:
    """Warns of jobs that nobody can run as things are; once for all that wait for the same reason."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def report(self, jobs: Iterable[JobView]) -> None:
        """A warning of the logger `semtask`; Python prints it to stderr where a program has set up no logging."""
        import logging

        for job in jobs:
            waiting = job.waiting
            if waiting is None or waiting.reason not in _STUCK or waiting.text in self._reported:
                continue
            self._reported.add(waiting.text)
            logging.getLogger("semtask").warning("job %s waits: %s", job.job_id, waiting.text)


def _still_going(job_id: str, timeout: float | None, job: JobView | None = None) -> TimeoutError:
    why = f"it waits: {job.waiting.text}" if job is not None and job.waiting else "it goes on"
    return TimeoutError(f"job {job_id} has not ended within {timeout:g} s; {why}")


_lock = threading.Lock()
_shared: WeakKeyDictionary[Connection, WeakKeyDictionary[AbstractEventLoop, SharedWaits]] = WeakKeyDictionary()


def _shared_of(connection: Connection) -> SharedWaits:
    import asyncio

    from semtask.client.shared_waits import SharedWaits

    loop = asyncio.get_running_loop()
    with _lock:
        loops = _shared.setdefault(connection, WeakKeyDictionary())
        if (waits := loops.get(loop)) is None:
            waits = loops[loop] = SharedWaits(connection.aanswer, StuckJobs().report)
        return waits
