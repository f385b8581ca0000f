"""Waiting for the end of jobs on an event loop: any number of them, in a few requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from semtask.client.messages import WAIT, AsyncSender
from semtask.client.patience import asend_patiently
from semtask.client.waiting import EXPLAIN_AFTER_MS, LONGEST_MS, MOST_IDS
from semtask.errors import NotFound
from semtask.model.state import FINAL

if TYPE_CHECKING:
    from semtask.protocol.jobs import JobView

_MOST_REQUESTS = 4
_PAUSE_PER_JOB_S = 50e-6


class SharedWaits:
    """All that is awaited on one event loop. The daemon is asked in batches: a request, and a connection, for each
    job would keep others from having one.

    A few requests are under way; a new wait begins another one, and if there are too many, the smallest is
    begun again with it. `explain` is given each job once, when it has been awaited for EXPLAIN_AFTER_MS.
    """

    def __init__(self, send: AsyncSender, explain: Callable[[list[JobView]], None]) -> None:
        self._send = send
        self._explain = explain
        self._futures: dict[str, list[asyncio.Future[JobView]]] = {}
        self._fresh: set[str] = set()
        self._requests: dict[asyncio.Task[None], set[str]] = {}
        self._beginning = False
        self._explain_at: dict[str, float] = {}  # loop time

    async def ended(self, job_id: str) -> JobView:
        future: asyncio.Future[JobView] = asyncio.get_running_loop().create_future()
        if job_id not in self._futures:
            self._explain_at[job_id] = asyncio.get_running_loop().time() + EXPLAIN_AFTER_MS / 1000
            self._begin_with({job_id})
        self._futures.setdefault(job_id, []).append(future)
        try:
            return await future
        finally:
            self._leave(job_id, future)

    def _leave(self, job_id: str, future: asyncio.Future[JobView]) -> None:
        futures = self._futures.get(job_id, [])
        if future in futures:
            futures.remove(future)
        if futures or self._futures.pop(job_id, None) is None:
            return
        self._fresh.discard(job_id)
        self._explain_at.pop(job_id, None)
        for request, job_ids in self._requests.items():
            if job_id in job_ids and not any(other in self._futures for other in job_ids):
                request.cancel()

    def _begin_with(self, job_ids: Iterable[str]) -> None:
        self._fresh.update(job_ids)
        if self._fresh and not self._beginning:
            self._beginning = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._beginning = False
        job_ids, self._fresh = self._fresh, set()
        if len(self._requests) >= _MOST_REQUESTS:
            smallest = min(self._requests, key=lambda request: len(self._requests[request]))
            job_ids |= self._requests.pop(smallest)
            smallest.cancel()
        wanted = [job_id for job_id in job_ids if job_id in self._futures]
        for start in range(0, len(wanted), MOST_IDS):
            self._request(set(wanted[start : start + MOST_IDS]))

    def _request(self, job_ids: set[str]) -> None:
        request = asyncio.get_running_loop().create_task(self._ask(job_ids))
        self._requests[request] = job_ids
        request.add_done_callback(lambda _: self._requests.pop(request, None))

    async def _ask(self, job_ids: set[str]) -> None:
        try:
            jobs = await self._look(job_ids)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where the jobs are awaited
            self._fail(job_ids, error)
            return
        for job in jobs:
            if job.state in FINAL:
                self._settle(job)
        self._explain_when_due([job for job in jobs if job.state not in FINAL])
        # Jobs that end one after the other shall not cost a request each while there are many.
        await asyncio.sleep(len(job_ids) * _PAUSE_PER_JOB_S)
        self._begin_with(job_id for job_id in job_ids if job_id in self._futures)

    async def _look(self, job_ids: set[str]) -> list[JobView]:
        """The jobs, once one of them has ended."""
        due = min((self._explain_at[job_id] for job_id in job_ids if job_id in self._explain_at), default=None)
        left_s = LONGEST_MS / 1000 if due is None else due - asyncio.get_running_loop().time()
        timeout_ms = min(max(0, math.ceil(left_s * 1000)), LONGEST_MS)
        wait = WAIT(job_ids=list(job_ids), mode="any", timeout_ms=timeout_ms, include=["result"])
        return (await asend_patiently(self._send, wait)).jobs

    def _explain_when_due(self, jobs: list[JobView]) -> None:
        now = asyncio.get_running_loop().time()
        due = [job for job in jobs if self._explain_at.get(job.job_id, math.inf) <= now]
        for job in due:
            del self._explain_at[job.job_id]
        if due:
            self._explain(due)

    def _settle(self, job: JobView) -> None:
        self._explain_at.pop(job.job_id, None)
        for future in self._futures.pop(job.job_id, ()):
            if not future.done():
                future.set_result(job)

    def _fail(self, job_ids: set[str], error: Exception) -> None:
        """A job that is not there must not disturb the others: they are asked for without it."""
        if len(job_ids) > 1 and isinstance(error, NotFound):
            halves = list(job_ids)
            self._request(set(halves[: len(halves) // 2]))
            self._request(set(halves[len(halves) // 2 :]))
            return
        for job_id in job_ids:
            for future in self._futures.pop(job_id, ()):
                if not future.done():
                    future.set_exception(error)
