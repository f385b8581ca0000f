"""Which job runs next, and when: slots per queue and over the machine, and the claim that fills them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from semtask.errors import RpcError
from semtask.host.clocks import Clock
from semtask.model.job import ClaimFacts, ExecutionMode, Job, QueueClass
from semtask.model.state import State
from semtask.protocol.messages import Waiting
from semtask.store.base import Change, ClaimRequest, QueueRow, Store
from semtask.telemetry.events import Hold

log = logging.getLogger("semtask.dispatcher")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STORE_PAUSE_S = 1.0
LOWEST_PRIORITY = -100


class Dispatcher:
    """Claims jobs while there are free slots. It sleeps until something frees or needs a slot.

    It knows how many slots are free and which queues may have work; which job comes next is decided by the store.
    One claim is under way at a time. It is submitted in the same turn of the loop as the insert that called for it,
    so that a new job and a free slot meet in one commit.
    """

    def __init__(
        self,
        store: Store,
        *,
        start: Callable[[Job], None],
        facts: Callable[[str, int], ClaimFacts],
        clock: Clock,
        node_id: str,
        max_processes: int,
        queue_concurrency: int,
        before_claim: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._start = start
        self._before_claim = before_claim
        self._facts = facts
        self._clock = clock
        self._node_id = node_id
        self.max_processes = max_processes
        self.queue_concurrency = queue_concurrency
        self._limits: dict[str, int] = {}
        self._paused: set[str] = set()
        self._background: set[str] = set()
        self._throttled: str | None = None
        self._suspended: str | None = None
        self._busy: Counter[str] = Counter()
        self._subjects: dict[tuple[str, str], str] = {}  # (job_type, subject_key) -> job_id of what runs
        self._known: set[str] = set()
        self._ready: set[str] = set()
        self._claiming: asyncio.Task[None] | None = None
        self._open = False
        self._pause_s = 0.0
        self._why_pause = ""
        self._pause: Hold = "no_room"
        self._resume: asyncio.TimerHandle | None = None

    # --- what the others tell it ---------------------------------------------------------------------------------

    def open(self, queues: Iterable[QueueRow]) -> None:
        """Begin to claim."""
        for row in queues:
            self.configure(row)
        self._open = True
        self._pump()

    def close(self) -> None:
        """Claim nothing more. A claim that is under way is still started or given back by its own commit."""
        self._open = False
        if self._resume is not None:
            self._resume.cancel()

    async def closed(self) -> None:
        """Wait for the claim that is under way."""
        if self._claiming is not None:
            await asyncio.wait([self._claiming])

    def configure(self, row: QueueRow) -> None:
        self._limits[row.name] = row.concurrency or self.queue_concurrency
        self._known.add(row.name)
        if row.queue_class is QueueClass.BACKGROUND:
            self._background.add(row.name)
        else:
            self._background.discard(row.name)
        if row.paused:
            self._paused.add(row.name)
        else:
            self._paused.discard(row.name)
            self._ready.add(row.name)
        self._pump()

    def wake(self, queues: Iterable[str]) -> None:
        """These queues have new work, or are about to."""
        queues = set(queues)
        self._known |= queues
        self._ready |= queues
        self._pump()

    def on_changes(self, changes: Sequence[Change]) -> None:
        queued = {c.queue for c in changes if c.after is State.QUEUED and c.execution_mode is ExecutionMode.SUBPROCESS}
        if any(
            c.subject_key is not None and c.before is State.RUNNING and c.after is not State.RUNNING for c in changes
        ):
            queued |= self._known  # the next job of a subject that is free now may wait in any queue
        if queued:
            self.wake(queued)

    def occupy(self, job: Job) -> None:
        """The job holds a slot of its queue, and its subject: it was claimed, now or by a former daemon."""
        self._busy[job.queue] += 1
        if job.subject_key is not None:
            self._subjects[job.job_type, job.subject_key] = job.job_id

    def release(self, job: Job) -> None:
        self._busy[job.queue] -= 1
        if not self._busy[job.queue]:
            del self._busy[job.queue]
        if job.subject_key is not None:
            self._subjects.pop((job.job_type, job.subject_key), None)
        self._pump()

    def throttle(self, reason: str | None) -> None:
        """While there is a reason, background queues and jobs with priority below 0 are not claimed; others go on."""
        before, self._throttled = self._throttled, reason
        if reason is None and before is not None:
            # Queues that were passed over have work that nothing will announce again.
            self.wake(self._known)

    def suspend(self, reason: str | None) -> None:
        """While there is a reason, nothing is claimed."""
        self._suspended = reason
        self._pump()

    def back_off(self, why: str) -> None:
        """The machine had no room to start a process: claim nothing for 1 s, doubling to 30 s."""
        if self._resume is None:
            self._pause_s = min(self._pause_s * 2 or FIRST_PAUSE_S, LONGEST_PAUSE_S)
            self._rest(self._pause_s, why, "no_room")

    def _rest(self, seconds: float, why: str, pause: Hold) -> None:
        log.warning("claiming pauses for %.0f s: %s", seconds, why)
        self._why_pause = why
        self._pause = pause
        self._resume = asyncio.get_running_loop().call_later(seconds, self._end_pause)

    def room_again(self) -> None:
        """A process was started: the next shortage begins with the short pause again."""
        self._pause_s = 0.0

    # --- what it says ----------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        return self._busy.total()

    @property
    def hold(self) -> Hold | None:
        """Why nothing at all is claimed now."""
        if self._resume is not None:
            return self._pause
        return "no_room" if self._suspended else None

    def limit(self, queue: str) -> int:
        return self._limits.get(queue, self.queue_concurrency)

    def waiting(self, job: Job) -> Waiting | None:
        """Why a waiting job does not run; None for others."""
        if job.state is State.SCHEDULED:
            return _not_due(job)
        if job.state is not State.QUEUED:
            return None
        return self._closed_to(job) or self._busy_for(job)

    def _closed_to(self, job: Job) -> Waiting | None:
        """Why jobs like this are not claimed at all now."""
        if job.execution_mode is ExecutionMode.IN_PROCESS:
            return Waiting(reason="no_app", text=f"no app offers the task {job.job_type!r}; nothing can run it")
        if not self._open:
            return Waiting(reason="stopping_daemon", text="the daemon is stopping; it runs after the next start")
        if job.queue in self._paused:
            return Waiting(reason="queue_paused", text=f"queue {job.queue!r} is paused: semtask resume {job.queue}")
        if self._suspended:
            return Waiting(reason="machine_full", text=f"nothing is started now: {self._suspended}")
        if self._resume is not None:
            return Waiting(reason="machine_full", text=f"claiming pauses for a moment: {self._why_pause}")
        if self._throttled and (job.queue in self._background or job.priority < 0):
            return Waiting(reason="throttled", text=f"background work waits: {self._throttled}")
        return None

    def _busy_for(self, job: Job) -> Waiting:
        """Which slot is taken that it needs."""
        queue = job.queue
        if job.subject_key is not None and (other := self._subjects.get((job.job_type, job.subject_key))):
            text = f"job {other} of the same subject {job.subject_key!r} runs"
            return Waiting(reason="subject_busy", text=text)
        if self._busy[queue] >= self.limit(queue):
            text = f"queue {queue!r} runs {self._busy[queue]} of {self.limit(queue)} jobs"
            return Waiting(reason="queue_full", text=text)
        if self.running >= self.max_processes:
            text = f"{self.running} of max_processes={self.max_processes} commands run"
            return Waiting(reason="machine_full", text=text)
        return Waiting(reason="behind_others", text="its turn comes next, or others go before it")

    # --- claiming ---------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        if not self._open or self._suspended or self._claiming is not None or self._resume is not None:
            return
        if self._ready:
            self._before_claim()
        free = self.max_processes - self.running
        passed_over = self._paused | self._background if self._throttled else self._paused
        room = {q: self.limit(q) - self._busy[q] for q in self._ready if q not in passed_over}
        room = {q: min(slots, free) for q, slots in room.items() if slots > 0}
        if free > 0 and room:
            self._claiming = asyncio.get_running_loop().create_task(self._claim(room, free))
            self._claiming.add_done_callback(self._claimed)

    async def _claim(self, room: dict[str, int], limit: int) -> None:
        self._ready.difference_update(room)
        request = ClaimRequest(
            mode=ExecutionMode.SUBPROCESS,
            queues=room,
            limit=limit,
            now=self._clock.now_ms(),
            node_id=self._node_id,
            min_priority=0 if self._throttled else LOWEST_PRIORITY,
            facts=self._facts,
        )
        try:
            jobs = await self._store.claim(request)
        except RpcError as error:
            self._ready.update(room)
            self._rest(STORE_PAUSE_S, error.message, "store")
            return
        for job in jobs:
            self.occupy(job)
            self._start(job)
        taken = Counter(job.queue for job in jobs)
        full = len(jobs) == limit
        self._ready.update(q for q, slots in room.items() if full or taken[q] == slots)

    def _claimed(self, task: asyncio.Task[None]) -> None:
        self._claiming = None
        if not task.cancelled() and task.exception() is not None:
            log.error("a claim failed", exc_info=task.exception())
            return
        self._pump()

    def _end_pause(self) -> None:
        self._resume = None
        self._pump()


def _not_due(job: Job) -> Waiting:
    if not job.attempts:
        return Waiting(reason="scheduled", text=f"waits for its time, run_at={job.run_at}")
    number = f"attempt {job.attempts + 1} of {max(job.max_attempts, job.attempts + 1)}"
    return Waiting(reason="retry", text=f"{number} follows at run_at={job.run_at}; the last one: {job.error}")
