"""Who holds which slot: of a queue, of the machine, of a task, of a subject."""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

import msgspec

from semtask.model.job import Job

Key = tuple[str, int]
K = TypeVar("K")


class _Held(msgspec.Struct):
    queue: str
    job_type: str
    subject_key: str | None
    seat: str
    process: bool


class Slots:
    """Counts what runs. A *seat* is what takes a slot: a command, a sync worker with all its jobs, or one async job.

    So work that waits in a sync worker for its turn takes no slot of its own, as long as it is of the same queue.
    A job that waits for another job counts in no limit.
    """

    def __init__(self) -> None:
        self._held: dict[Key, _Held] = {}
        self._blocked: set[Key] = set()
        self._in_queue: Counter[tuple[str, str]] = Counter()  # (queue, seat) -> jobs
        self._queues: Counter[str] = Counter()  # queue -> seats
        self._processes: Counter[str] = Counter()  # seat -> jobs
        self._tasks: Counter[str] = Counter()
        self._subjects: dict[tuple[str, str], str] = {}  # (job_type, subject_key) -> job_id of what runs

    def occupy(self, job: Job, *, worker: str | None = None, process: bool = True) -> None:
        """The job holds its slots: it was claimed, now or by a former daemon.

        `worker` is the sync worker that has it. `process` is false for an async job, which needs none of its own.
        """
        key = (job.job_id, job.claim_no)
        held = _Held(job.queue, job.job_type, job.subject_key, worker or job.job_id, process)
        self._held[key] = held
        self._count(held)
        if job.subject_key is not None:
            self._subjects[job.job_type, job.subject_key] = job.job_id

    def release(self, job: Job) -> None:
        key = (job.job_id, job.claim_no)
        held = self._held.pop(key, None)
        if held is None:
            return
        if key in self._blocked:
            self._blocked.remove(key)
        else:
            self._uncount(held)
        if held.subject_key is not None:
            self._subjects.pop((held.job_type, held.subject_key), None)

    def block(self, key: Key, *, blocked: bool) -> None:
        """The job waits for another one, or goes on; then it may exceed a limit for a while."""
        held = self._held.get(key)
        if held is None or blocked is (key in self._blocked):
            return
        if blocked:
            self._blocked.add(key)
            self._uncount(held)
        else:
            self._blocked.remove(key)
            self._count(held)

    def task_of(self, key: Key) -> str | None:
        """The task of a job that holds slots."""
        held = self._held.get(key)
        return None if held is None else held.job_type

    def is_blocked(self, job: Job) -> bool:
        return (job.job_id, job.claim_no) in self._blocked

    def busy(self, queue: str) -> int:
        return self._queues[queue]

    def running_of(self, task: str) -> int:
        return self._tasks[task]

    def holder_of_subject(self, job: Job) -> str | None:
        """The id of the job of the same subject that runs."""
        return None if job.subject_key is None else self._subjects.get((job.job_type, job.subject_key))

    def holder_of_lane(self, lane: tuple[str, str]) -> str | None:
        """The id of the job of this (job_type, subject_key) that runs."""
        return self._subjects.get(lane)

    @property
    def processes(self) -> int:
        """Running commands and sync workers with work."""
        return len(self._processes)

    @property
    def running(self) -> int:
        """Jobs that were claimed and have not ended."""
        return len(self._held)

    def _count(self, held: _Held) -> None:
        self._tasks[held.job_type] += 1
        self._in_queue[held.queue, held.seat] += 1
        if self._in_queue[held.queue, held.seat] == 1:
            self._queues[held.queue] += 1
        if held.process:
            self._processes[held.seat] += 1

    def _uncount(self, held: _Held) -> None:
        _less(self._tasks, held.job_type)
        place = (held.queue, held.seat)
        _less(self._in_queue, place)
        if place not in self._in_queue:
            _less(self._queues, held.queue)
        if held.process:
            _less(self._processes, held.seat)


def _less(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
