"""Which job runs next, and when: the claims that fill the slots, of each queue and of the machine."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from semtask.engine.holds import Holds
from semtask.engine.slots import Key, Slots
from semtask.errors import RpcError
from semtask.executors.base import TaskExecutor
from semtask.host.clocks import Clock
from semtask.model.job import ClaimFacts, ExecutionMode, Job, Taker
from semtask.model.state import State
from semtask.protocol.frames import TaskInfo
from semtask.store.base import Change, Store
from semtask.store.requests import ClaimRequest, QueueRow, TaskClaim, TaskClaimed

log = logging.getLogger("semtask.dispatcher")

COMMANDS = ExecutionMode.SUBPROCESS
TASKS = ExecutionMode.IN_PROCESS


class Offers(Protocol):
    """Which tasks may be claimed: see engine.apps."""

    @property
    def offered(self) -> frozenset[str]: ...
    @property
    def limited(self) -> Mapping[str, int]: ...
    def task(self, name: str) -> TaskInfo | None: ...
    def rooms(self) -> Mapping[str, int]: ...
    def set_aside(self, tasks: frozenset[str]) -> None: ...
    def released(self, task: str) -> None: ...


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
        slots: Slots,
        start: Callable[[Job], None],
        start_tasks: Callable[[str, Sequence[Job]], None],
        tasks: TaskExecutor,
        offers: Offers,
        facts: Callable[[str, int], ClaimFacts],
        clock: Clock,
        node_id: str,
        max_processes: int,
        queue_concurrency: int,
        before_claim: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._slots = slots
        self._start = start
        self._start_tasks = start_tasks
        self._tasks = tasks
        self._offers = offers
        self._before_claim = before_claim
        self._facts = facts
        self._clock = clock
        self._node_id = node_id
        self.max_processes = max_processes
        self.queue_concurrency = queue_concurrency
        self.holds = Holds(self._pump)
        self._limits: dict[str, int] = {}
        self._known: set[str] = set()
        self._ready: dict[ExecutionMode, set[str]] = {COMMANDS: set(), TASKS: set()}
        self._full: set[str] = set()  # queues without a slot, where no task was found to be taken ahead
        self._unserved: set[str] = set()  # tasks whose jobs wait for a worker
        self._freed_since = False  # something became free since the last claim of tasks was made
        self._commands_first = True
        self._claiming: asyncio.Task[None] | None = None

    # --- what the others tell it ---------------------------------------------------------------------------------

    def open(self, queues: Iterable[QueueRow]) -> None:
        """Begin to claim."""
        for row in queues:
            self.configure(row)
        self.holds.open()
        self._pump()

    def close(self) -> None:
        """Claim nothing more. A claim that is under way is still started or given back by its own commit."""
        self.holds.close()

    async def closed(self) -> None:
        """Wait for the claim that is under way."""
        if self._claiming is not None:
            await asyncio.wait([self._claiming])

    async def settled(self) -> bool:
        """Wait until no claim is under way, nor would be begun now. Whether there was anything to wait for."""
        waited = False
        while self._claiming is not None:
            waited = True
            await asyncio.wait([self._claiming])
        return waited

    def configure(self, row: QueueRow) -> None:
        """The settings of a queue are these from now on; claims that are under way are not undone."""
        self._limits[row.name] = row.concurrency or self.queue_concurrency
        self._known.add(row.name)
        self.holds.configure(row)
        if not row.paused:
            self._mark_ready({row.name})
        self._pump()

    def wake(self, queues: Iterable[str], mode: ExecutionMode) -> None:
        """These queues have new work of this mode, or are about to."""
        queues = set(queues)
        self._known |= queues
        self._ready[mode] |= queues
        self._pump()

    def wake_tasks(self) -> None:
        """Claims may find more tasks now: an app was imported, or jobs were brought back."""
        self._ready[TASKS] |= self._known
        self._pump()

    def room_changed(self) -> None:
        """A worker has become free, or was started."""
        self._look_at_tasks_again()
        self._pump()

    def on_changes(self, changes: Sequence[Change]) -> None:
        """Look for work where a commit has brought some: a job that is ready, or a subject that is free."""
        wanted = False
        for change in changes:
            if change.after is State.QUEUED:
                self._known.add(change.queue)
                self._ready[change.execution_mode].add(change.queue)
                wanted = True
                if change.before is State.QUEUED and not self._has_slot(change.queue):
                    self._offers.released(change.job_type)  # this one was brought back, but cannot take the room
            elif (
                change.subject_key is not None and change.before is State.RUNNING and change.after is not State.RUNNING
            ):
                self._mark_ready(self._known)  # the next job of a subject that is free now may wait in any queue
                wanted = True
            elif change.before is State.QUEUED and change.after is not State.RUNNING:
                self._offers.released(change.job_type)  # it may have been brought back for a room that is still free
        if wanted:
            self._pump()

    def occupy(self, job: Job, worker: str | None = None) -> None:
        """The job holds its slots: it was claimed, now or by a former daemon, for this worker if it is a task."""
        task = self._offers.task(job.job_type) if worker else None
        if task is not None and task.is_async:
            self._slots.occupy(job, process=False)
        else:
            self._slots.occupy(job, worker=worker)

    def release(self, jobs: Iterable[Job]) -> None:
        """These jobs hold their slots no longer."""
        for job in jobs:
            self._slots.release(job)
            if job.execution_mode is TASKS:
                self._offers.released(job.job_type)
        self._look_at_tasks_again()
        self._pump()

    def block(self, key: Key, *, blocked: bool) -> None:
        """A running job waits for another one, or goes on: while it waits it counts in no limit."""
        self._slots.block(key, blocked=blocked)
        task = self._slots.task_of(key)
        if blocked and task is not None:
            self._offers.released(task)
        self._look_at_tasks_again()
        self._pump()

    def throttle(self, reason: str | None) -> None:
        """While there is a reason, background queues and jobs with priority below 0 are not claimed; others go on."""
        before, self.holds.throttled = self.holds.throttled, reason
        if reason is None and before is not None:
            # Queues that were passed over have work that nothing will announce again.
            self._mark_ready(self._known)
            self._pump()

    def suspend(self, reason: str | None) -> None:
        """While there is a reason, nothing is claimed."""
        self.holds.suspended = reason
        self._pump()

    def hold_commands(self, reason: str | None) -> None:
        """While there is a reason, no command is claimed; tasks go on."""
        before, self.holds.commands = self.holds.commands, reason
        if reason is None and before is not None:
            self._ready[COMMANDS] |= self._known
            self._pump()

    def _look_at_tasks_again(self) -> None:
        self._freed_since = True
        self._ready[TASKS] |= self._full
        self._full.clear()
        if self._unserved:
            self._unserved.clear()
            self._ready[TASKS] |= self._known

    def _mark_ready(self, queues: Iterable[str]) -> None:
        for ready in self._ready.values():
            ready.update(queues)

    # --- what it says ----------------------------------------------------------------------------------------------

    def limit(self, queue: str) -> int:
        """How many jobs of the queue may run simultaneously."""
        return self._limits.get(queue, self.queue_concurrency)

    def has_worker_for(self, task: str) -> bool:
        """Whether the last claim that found a job of this task had a worker for it."""
        return task not in self._unserved

    # --- claiming ---------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        if self.holds.everything or self._claiming is not None:
            return
        if not self._ready[COMMANDS] and not self._ready[TASKS]:
            return
        self._before_claim()
        free = max(self.max_processes - self._slots.processes, 0)
        room = {} if self.holds.commands else {q: slots for q, slots in self._room(COMMANDS).items() if slots > 0}
        # A share is kept only for those who can take it now: nobody would come back for the rest.
        tasks = self._task_claim(self._share(free, TASKS) if room else free)
        commands = self._command_claim(room, self._share(free, COMMANDS) if tasks else free)
        if commands or tasks:
            # Immediately: what becomes ready from now on may not be seen by these claims.
            self._ready[COMMANDS].difference_update(commands.queues if commands else ())
            self._ready[TASKS].difference_update(tasks.queues if tasks else ())
            self._claiming = asyncio.get_running_loop().create_task(self._claim(commands, tasks))
            self._claiming.add_done_callback(self._claimed)

    def _room(self, mode: ExecutionMode) -> dict[str, int]:
        """Free slots of the queues that may have work and may run it."""
        return {
            queue: max(self.limit(queue) - self._slots.busy(queue), 0)
            for queue in self._ready[mode]
            if self.holds.lets(queue)
        }

    def _has_slot(self, queue: str) -> bool:
        return self.holds.lets(queue) and self._slots.busy(queue) < self.limit(queue)

    def _share(self, free: int, mode: ExecutionMode) -> int:
        """Of free processes that both commands and tasks want: half of them, the odd one in turns."""
        return free // 2 + (free % 2 if (mode is COMMANDS) is self._commands_first else 0)

    def _command_claim(self, room: Mapping[str, int], processes: int) -> ClaimRequest | None:
        if not room or not processes:
            return None
        return ClaimRequest(
            mode=COMMANDS,
            queues={queue: min(slots, processes) for queue, slots in room.items()},
            limit=processes,
            now=self._clock.now_ms(),
            node_id=self._node_id,
            min_priority=self.holds.min_priority,
            facts=self._facts,
        )

    def _task_claim(self, processes: int) -> TaskClaim | None:
        room = self._room(TASKS)
        if not room:
            return None
        self._freed_since = False
        takers = self._tasks.takers(processes, self._offers.limited)
        if any(room.values()):
            usable = [taker for taker in takers if not taker.ahead or self._may_queue_ahead(taker)]
        else:
            usable = [taker for taker in takers if taker.ahead and taker.queues and self._may_queue_ahead(taker)]
        if not usable:
            return None
        return TaskClaim(
            queues=room,
            takers=usable,
            offered=self._offers.offered,
            rooms=self._offers.rooms(),
            now=self._clock.now_ms(),
            node_id=self._node_id,
            min_priority=self.holds.min_priority,
        )

    def _may_queue_ahead(self, taker: Taker) -> bool:
        return taker.queues is None or not taker.queues.isdisjoint(self._ready[TASKS] - self.holds.paused)

    async def _claim(self, commands: ClaimRequest | None, tasks: TaskClaim | None) -> None:
        self._commands_first = not self._commands_first
        steps: list[Awaitable[None]] = []
        if commands:
            steps.append(self._tried(COMMANDS, commands, self._claim_commands(commands)))
        if tasks:
            steps.append(self._tried(TASKS, tasks, self._claim_tasks(tasks)))
        if len(steps) == 1:
            await steps[0]
        else:
            await asyncio.gather(*steps)

    async def _tried(self, mode: ExecutionMode, request: ClaimRequest | TaskClaim, claim: Awaitable[None]) -> None:
        """Where it fails, the queues are claimed from again after a pause: they must not stall because of it."""
        try:
            await claim
        except RpcError as error:
            why = error.message
        except Exception as error:
            log.exception("a claim failed")
            why = f"a claim failed: {error!r}"
        else:
            return
        self._ready[mode].update(request.queues)
        self.holds.store_refused(why)

    async def _claim_commands(self, request: ClaimRequest) -> None:
        jobs = await self._store.claim(request)
        for job in jobs:
            self.occupy(job)
            self._start(job)
        taken = Counter(job.queue for job in jobs)
        full = len(jobs) == request.limit
        self._ready[COMMANDS].update(q for q, slots in request.queues.items() if full or taken[q] == slots)

    async def _claim_tasks(self, request: TaskClaim) -> None:
        claimed = await self._store.claim_tasks(request)
        self._hand_over(request, claimed)
        self._unserved |= claimed.unserved
        if claimed.set_aside:
            self._offers.set_aside(claimed.set_aside)
        if claimed.unserved:
            self._tasks.shortage(claimed.unserved)
        if any(claimed.jobs) or claimed.set_aside:
            self._ready[TASKS].update(request.queues)  # until a claim finds nothing more
        else:
            self._full.update(queue for queue, slots in request.queues.items() if not slots)
        if self._freed_since:  # the claim did not see it
            self._look_at_tasks_again()

    def _hand_over(self, request: TaskClaim, claimed: TaskClaimed) -> None:
        for taker, jobs in zip(request.takers, claimed.jobs, strict=True):
            if jobs:
                worker = taker.facts.worker
                assert worker is not None, "a taker is a worker"
                for job in jobs:
                    self.occupy(job, worker)
                self._start_tasks(worker, jobs)

    def _claimed(self, task: asyncio.Task[None]) -> None:
        self._claiming = None
        if not task.cancelled():
            self._pump()
