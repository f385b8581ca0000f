"""Which running jobs wait for which others. A job that waits counts in no limit until it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from semtask.engine.live import Key, LiveAttempts
from semtask.engine.slots import Slots
from semtask.executors.base import Executor, TaskExecutor
from semtask.model.job import Job

Lane = tuple[str, str]

_NAMED = 5


class Waiter(NamedTuple):
    """Who sends a request, if it comes from a process of a job.

    `attempt` and `job_id` are what it says (SEMANTICA_ATTEMPT, SEMANTICA_JOB_ID; empty: nothing), `pid` is its process
    as the socket names it (0: unknown).
    """

    attempt: str = ""
    job_id: str = ""
    pid: int = 0


NOBODY = Waiter()


class _Wait(NamedTuple):
    """Waiting for these jobs. `certain`: none of them is dispensable, as it may be where any of several will do."""

    job_ids: Sequence[str]
    certain: bool


class Waits:
    """Knows of a wait from the request that waits, or from the worker of a task; both end by themselves.

    `block` is told when a job begins to wait, and when it goes on. All of this is lost with the daemon, and so are the
    requests.
    """

    def __init__(
        self,
        slots: Slots,
        live: LiveAttempts,
        commands: Executor,
        tasks: TaskExecutor,
        block: Callable[[Key, bool], None],
    ) -> None:
        self._slots = slots
        self._live = live
        self._commands = commands
        self._tasks = tasks
        self._block = block
        self._requests: dict[Key, list[_Wait]] = {}
        self._told: dict[Key, _Wait] = {}  # by the workers of tasks
        self._keys: dict[str, Key] = {}  # of the jobs that wait
        self._lanes: dict[str, tuple[Lane, int]] = {}  # of the jobs that are waited for, and by how many requests

    # --- who waits ---------------------------------------------------------------------------------------------------

    @contextmanager
    def during(self, waiter: Waiter, jobs: Sequence[Job], *, enough: int, follows: bool = False) -> Iterator[None]:
        """A request waits until `enough` of these jobs, which have not ended, have done so, or `follows` what they
        write. Who follows their own output does something else as well.
        """
        key = self._job_of(waiter)
        if follows and key is not None and jobs[0].job_id == key[0]:
            key = None
        lanes = [(job.job_id, (job.job_type, job.subject_key)) for job in jobs if job.subject_key is not None]
        for job_id, lane in lanes:
            self._lanes[job_id] = lane, self._lanes.get(job_id, (lane, 0))[1] + 1
        wait = _Wait([job.job_id for job in jobs], enough >= len(jobs))
        if key is not None:
            self._begin(key, wait)
        try:
            yield
        finally:
            self._leave_lanes([job_id for job_id, _ in lanes])
            if key is not None:
                self._end(key, wait)

    def told(self, key: Key, on: Sequence[str]) -> None:
        """A task says that it waits for these jobs; for none: that it goes on."""
        if on:
            self._told[key] = _Wait(on, len(on) == 1)
        else:
            self._told.pop(key, None)
        self._changed(key)

    def _begin(self, key: Key, wait: _Wait) -> None:
        waits = self._requests.setdefault(key, [])
        waits.append(wait)
        if len(waits) == 1:
            self._tasks.waits_outside(key, waits=True)
            self._changed(key)

    def _end(self, key: Key, wait: _Wait) -> None:
        waits = self._requests.get(key)
        if waits is None:  # the attempt has ended
            return
        waits.remove(wait)
        if not waits:
            del self._requests[key]
            self._tasks.waits_outside(key, waits=False)
            self._changed(key)

    def ended(self, job: Job) -> None:
        """The attempt is over, whatever it was waiting for."""
        key = (job.job_id, job.claim_no)
        if self._keys.get(job.job_id) == key:
            del self._keys[job.job_id]
        self._requests.pop(key, None)
        self._told.pop(key, None)

    def _job_of(self, waiter: Waiter) -> Key | None:
        """The running attempt whose process it is."""
        if not waiter.attempt:  # it is no job, or its environment was cleared
            return self._commands.job_of(waiter.pid) or self._tasks.job_of("", "", waiter.pid)
        job_id, _, rest = waiter.attempt.partition(".")
        claim_no = rest.partition(".")[0]
        if claim_no.isascii() and claim_no.isdigit() and len(claim_no) < 10:
            key = (job_id, int(claim_no))
            job = self._live.get(key)
            if job is not None and job.claim is not None and job.claim.nonce == waiter.attempt:
                return key if self._live.is_live(key) else None
        return self._tasks.job_of(waiter.attempt, waiter.job_id, waiter.pid)

    def _changed(self, key: Key) -> None:
        waits = key in self._requests or key in self._told
        if waits is (self._keys.get(key[0]) == key):
            return
        if waits:
            self._keys[key[0]] = key
        else:
            del self._keys[key[0]]
        self._block(key, waits)

    def _leave_lanes(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            lane, requests = self._lanes.pop(job_id)
            if requests > 1:
                self._lanes[job_id] = lane, requests - 1

    # --- what it waits for -------------------------------------------------------------------------------------------

    def why(self, job_id: str) -> tuple[bool, str] | None:
        """What a running job waits for, as a text, and whether that will never come; None if it does not wait."""
        waits = self._waits_of(job_id)
        if not waits:
            return None
        if circle := self.circle(job_id):
            return True, circle
        others = list(dict.fromkeys(other for wait in waits for other in wait.job_ids))
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        return False, f"it waits for job {others[0]}{more}"

    def circle(self, job_id: str) -> str | None:
        """That this job waits for one that waits for it, as a text, with all jobs between; None if it is not so."""
        way = self._way_back(job_id)
        if way is None:
            return None
        if not way:
            return "it waits for its own end, which never comes; cancel it"
        named = [f"job {other}" for other in way]
        if len(named) > _NAMED:
            named[_NAMED:] = [f"another job ({len(named) - _NAMED} of them)"]
        between = ", which waits for ".join(named)
        return f"it waits for {between}, which waits for it; none of them can go on: cancel one"

    def _way_back(self, start: str) -> list[str] | None:
        """The jobs on the shortest way from this one back to it."""
        before: dict[str, str] = {}
        for place in (queue := [start]):
            for other in self._next(place):
                if other == start:
                    way = [place]
                    while way[-1] != start:
                        way.append(before[way[-1]])
                    return way[-2::-1]
                if other not in before:
                    before[other] = place
                    queue.append(other)
        return None

    def _next(self, job_id: str) -> Iterator[str]:
        """The jobs without whose end this one cannot go on or begin."""
        for wait in self._waits_of(job_id):
            if wait.certain:
                yield from wait.job_ids
        if job_id in self._lanes:
            holder = self._slots.holder_of_lane(self._lanes[job_id][0])
            if holder is not None and holder != job_id:
                yield holder

    def _waits_of(self, job_id: str) -> Sequence[_Wait]:
        key = self._keys.get(job_id)
        if key is None:
            return ()
        told = self._told.get(key)
        return [*([told] if told else ()), *self._requests.get(key, ())]
