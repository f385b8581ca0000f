"""A worker as the jobs it has: which of them run and which wait, and how each one ends, whatever the worker does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from semtask.executors.base import TaskEnd, WorkerStatus
from semtask.model import outcome
from semtask.model.app import App
from semtask.model.job import ClaimFacts, Job, ProgressNote
from semtask.model.state import StopReason
from semtask.protocol.frames import Blocked, Ended, Hello, Progress, Recalled, Run, Stop, ToDaemon, encode
from semtask.workers import crash
from semtask.workers.calls import batches, call_of
from semtask.workers.death import Death
from semtask.workers.pace import Pace
from semtask.workers.process import Site, WorkerProcess
from semtask.workers.task_outcome import of_frame

Key = tuple[str, int]

RECALL_AFTER_S = 0.010
_INTERRUPT_AGAIN_S = 0.1
# Before it is killed, a worker writes where it is. Its log is looked at in such pauses, until it has grown and grows no
# more: a busy machine takes its time. One that writes nothing is killed after _SHOWN_WITHIN_S.
_SHOW_S = 0.02
_SHOWN_WITHIN_S = 1.0
_RECALLED = "taken back before it began"

_json = msgspec.json.Encoder()


class Reports(Protocol):
    """Takes what is to be told to the engine; it goes there in batches."""

    def ended(self, ends: Sequence[TaskEnd]) -> None: ...
    def progress(self, notes: Sequence[ProgressNote]) -> None: ...
    def blocked(self, job_id: str, claim_no: int, on: Sequence[str]) -> None: ...
    def kill_failed(self, keys: Sequence[Key]) -> None: ...


class Pool(Protocol):
    """Who a worker belongs to."""

    pace: Pace
    reports: Reports

    def said_hello(self, worker: Worker) -> None: ...
    def has_room(self, worker: Worker) -> None:
        """It has ended a job, and takes others."""
        ...

    def is_leaving(self, worker: Worker) -> None:
        """It takes no more jobs."""
        ...


class _Order(NamedTuple):
    """A stop that was ordered. `until` is loop time."""

    grace_ms: int
    until: float
    timer: asyncio.TimerHandle


class Worker:
    """Its kind follows from its first job: `sync` runs one job after the other, `async` all simultaneously."""

    def __init__(self, site: Site, app: App, worker_id: str, pool: Pool, facts: ClaimFacts) -> None:
        self._site = site
        self._app = app
        self._pool = pool
        self.process = WorkerProcess(site, app, worker_id, self)
        self.name = self.process.name
        self.facts = msgspec.structs.replace(facts, nonce=self.name, worker=self.name)
        self.kind: Literal["sync", "async"] | None = None
        self.sync_tasks: frozenset[str] = frozenset()
        self.async_tasks: frozenset[str] = frozenset()
        self.ready = False  # it has said hello
        self.leaving = False
        self.dismissed = False  # it leaves because it was asked to, or must be replaced
        self.dead = False
        self._retires = False  # it wants to leave when its jobs have ended
        self.jobs_done = 0
        self.idle_since = 0.0
        self._held: dict[Key, tuple[Job, int]] = {}  # with the number of its call, in the order of the calls
        self._calls = 0
        self._since = 0.0  # when the first one of a sync worker began, at the latest
        self._last_was_quick = False
        self._blocked: set[Key] = set()
        self._outside: set[Key] = set()  # a process of the job waits for another job
        self._orders: dict[Key, _Order] = {}
        self._condemned: Key | None = None  # it is killed because this job did not end
        self._owed: list[TaskEnd] = []  # ends that are told when nothing of the job is left
        self._started_at = site.now_ms()
        self._loop = asyncio.get_running_loop()

    # --- what it can take ------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether it could take any job, as it has none."""
        return self.ready and not self.leaving and not self._held

    @property
    def room(self) -> int:
        """How many more async jobs it takes."""
        if not self.ready or self.leaving or self.kind == "sync" or not self.process.link.is_clear:
            return 0
        return self._site.settings.async_jobs - len(self._held)

    @property
    def is_busy(self) -> bool:
        """Whether it has a sync job that is not blocked."""
        return self.kind == "sync" and len(self._held) > len(self._blocked | self._outside)

    @property
    def waiting(self) -> int:
        """How many jobs wait in it for the one before them."""
        return max(0, len(self._held) - 1) if self.kind == "sync" else 0

    def room_ahead(self) -> int:
        """How many quick jobs may wait in it, besides those that do; 0 unless there is room for several."""
        depth = self._pool.pace.depth
        waiting = len(self._held) - 1
        if waiting > depth // 2 or self.leaving or self._orders or not self.process.link.is_clear:
            return 0
        if self._blocked or self._outside:
            return 0
        if self._held:
            (first, _), *_ = self._held.values()
            quick = self.kind == "sync" and self._pool.pace.is_quick(first.job_type)
        else:
            quick = self._last_was_quick
        return depth - max(waiting, 0) if quick else 0

    @property
    def queues(self) -> frozenset[str]:
        """The queues of its jobs."""
        return frozenset(job.queue for job, _ in self._held.values())

    def status(self) -> WorkerStatus:
        hello = self.process.hello
        state: Literal["starting", "idle", "busy", "leaving"] = "busy" if self._held else "idle"
        if self.leaving:
            state = "leaving"
        elif not self.ready:
            state = "starting"
        return WorkerStatus(
            worker=self.name,
            app=self._app.name,
            pid=self.process.pid,
            state=state,
            kind=self.kind,
            running=[job_id for job_id, _ in self._held],
            jobs_done=self.jobs_done,
            started_at=self._started_at,
            python=hello.python if hello is not None else None,
        )

    # --- what it is told -------------------------------------------------------------------------------------------

    def start(self, jobs: Sequence[Job]) -> None:
        """Hand claimed jobs over."""
        if self.leaving or not self.ready:
            self._give_back(jobs, "its worker was about to leave")
            return
        if self.kind is None:
            self.kind = "async" if jobs[0].job_type in self.async_tasks else "sync"
        if not self._held:
            self._since = self._loop.time()
        for job in jobs:
            self._calls += 1
            self._held[job.job_id, job.claim_no] = job, self._calls
        tokens = self.kind == "sync"
        for batch in batches(jobs):
            self.process.link.run(encode(Run(calls=[call_of(job) for job in batch])), len(batch), tokens=tokens)

    def stop(self, key: Key, reason: StopReason, grace_ms: int) -> None:
        """End a job of this worker. One that has not begun is recalled."""
        if self.kind == "sync" and key not in self._orders:
            self._recall(len(self._held) - list(self._held).index(key))
            if key not in self._held:
                return
        until = self._loop.time() + grace_ms / 1000
        order = self._orders.get(key)
        if order is not None:
            if until >= order.until:
                return
            order.timer.cancel()
        timer = self._loop.call_at(until, self._grace_is_over, key)
        self._orders[key] = _Order(grace_ms, until, timer)
        self.process.link.send(Stop(job_id=key[0], claim_no=key[1], reason=reason.value, grace_ms=grace_ms))
        if self.kind == "sync":
            self._interrupt(key, _INTERRUPT_AGAIN_S)

    def _interrupt(self, key: Key, again_s: float) -> None:
        """Signal the worker until the job has ended, less and less often.

        A signal that comes just before a system call blocks does not end that call, and the task would sleep on. One
        that comes after the interruption has no effect.
        """
        if key in self._orders:
            self.process.interrupt()
            self._loop.call_later(again_s, self._interrupt, key, 2 * again_s)

    @property
    def has_jobs(self) -> bool:
        """Whether the end of a job is still to be told."""
        return bool(self._held or self._owed)

    def holds(self, key: Key) -> bool:
        return key in self._held

    def job_of(self, job_id: str, pid: int) -> Key | None:
        """For which of its jobs a process acts that it started, or the code in it."""
        keys = list(self._held)
        if self.kind == "sync" or len(keys) <= 1:
            return keys[0] if keys else None
        if pid == self.process.pid:
            return None  # whoever it is speaks for itself, in frames
        return next((key for key in keys if key[0] == job_id), None)

    def waits_outside(self, key: Key, *, waits: bool) -> None:
        """A process of the job waits for another job, or goes on."""
        if waits:
            self._outside.add(key)
            self._recall(self.waiting)  # they may be what it waits for
        else:
            self._outside.discard(key)

    def recall_stuck(self, now: float) -> None:
        """Take back what waits behind a job that takes its time."""
        if now - self._since > RECALL_AFTER_S:
            self.process.link.read()  # perhaps it is this process that took its time
            if now - self._since > RECALL_AFTER_S and self.waiting:
                self._recall(self.waiting)

    def leave(self) -> None:
        """Take no more jobs, give back what has not begun, and go when the others have ended."""
        if not self.leaving:
            self.dismissed = True
            self._stop_taking()
            if self.ready:
                self._go_when_done()
            else:
                self.process.kill("it is not needed any more")

    # --- what it says ----------------------------------------------------------------------------------------------

    def on_hello(self, hello: Hello) -> None:
        """It has imported its app, and can take jobs."""
        self.sync_tasks = frozenset(task.name for task in hello.tasks if not task.is_async)
        self.async_tasks = frozenset(task.name for task in hello.tasks if task.is_async)
        self.ready = True
        self.idle_since = self._loop.time()
        self._pool.said_hello(self)

    def on_frames(self, messages: Sequence[ToDaemon]) -> None:
        """What came in one read, in order. A frame that it may not send now is its end."""
        ends: list[TaskEnd] = []
        notes: list[ProgressNote] = []
        for message in messages:
            if type(message) is Ended:
                end = self._take_end(message)
                if end is not None:
                    ends.append(end)
            elif type(message) is Progress:
                if (message.job_id, message.claim_no) in self._held:
                    text = _json.encode(message.progress).decode()
                    notes.append(ProgressNote(job_id=message.job_id, claim_no=message.claim_no, progress=text))
            elif type(message) is Blocked:
                self._block((message.job_id, message.claim_no), message.on)
            else:
                self.process.kill(f"it sent {type(message).__name__} after its hello", broken=True)
                break
        if notes:
            self._pool.reports.progress(notes)
        if ends:
            self._since = self.idle_since = self._loop.time()
            self._retires |= not self.process.end_of_jobs()
            self._pool.reports.ended(ends)
            if self._retires or self._is_worn():
                self.leave()
            elif not self.leaving:
                self._pool.has_room(self)
        if self.leaving:
            self._go_when_done()

    def _is_worn(self) -> bool:
        """Whether an async worker has had its jobs. It asks for its end only when it is idle, which may be never."""
        limit = self._site.settings.max_jobs
        return self.kind == "async" and 0 < limit <= self._calls

    def on_closing(self) -> None:
        self._stop_taking()

    def on_stuck(self) -> None:
        keys = [*self._held, *((end.job.job_id, end.job.claim_no) for end in self._owed)]
        self._pool.reports.kill_failed(keys)

    def has_died(self, death: Death) -> None:
        """Nothing of it is left, and all that it sent was taken."""
        self.dead = self.leaving = True
        for order in self._orders.values():
            order.timer.cancel()
        ends, self._owed = self._owed, []
        ends += self._ends_by(death)
        self._held.clear()
        self.process.close()
        if ends:
            self._pool.reports.ended(ends)

    # --- jobs ------------------------------------------------------------------------------------------------------

    def _take_end(self, ended: Ended) -> TaskEnd | None:
        """The end of a job, if it can be told now."""
        key = (ended.job_id, ended.claim_no)
        held = self._held.pop(key, None)
        if held is None:
            self.process.kill(f"it ended job {ended.job_id}, which it does not have", broken=True)
            return None
        job, _ = held
        order = self._orders.pop(key, None) if self._orders else None
        if order is not None:
            order.timer.cancel()
        self._blocked.discard(key)
        self._outside.discard(key)
        self.jobs_done += 1
        if self.kind == "sync":
            self._pool.pace.note(job.job_type, ended.ran_us)
            self._last_was_quick = self._pool.pace.is_quick(job.job_type)
        end = TaskEnd(job, of_frame(ended, told_to_stop=order is not None), ended.ran_us / 1_000_000)
        if ended.retire is not None:
            self._retires = True
        if not ended.leftovers and ended.recycle is None:
            return end
        return self._take_last_end(ended, end)

    def _take_last_end(self, ended: Ended, end: TaskEnd) -> TaskEnd | None:
        self.dismissed = True
        self._stop_taking()
        if self.kind == "async":
            self._forget_last(len(self._held))
        if not ended.leftovers:
            return end
        self._owed.append(end)
        self.process.kill("processes of its last job were left")
        return None

    def _block(self, key: Key, on: Sequence[str]) -> None:
        if on and key in self._held:
            self._blocked.add(key)
            self._recall(self.waiting)  # they may be what it waits for
        elif key in self._blocked:
            self._blocked.remove(key)
        else:
            return
        self._pool.reports.blocked(*key, on)

    def _recall(self, most: int) -> None:
        """Take back up to so many jobs, the last ones, as far as they have not begun."""
        if most <= 0:
            return
        unsent = self.process.link.withdraw()
        taken = self.process.link.take_tokens(most - unsent)
        if taken:
            keys = list(self._held)[len(self._held) - unsent - taken : len(self._held) - unsent]
            self.process.link.send(Recalled(jobs=keys))
        self._forget_last(unsent + taken)

    def _forget_last(self, count: int) -> None:
        if count:
            recalled = [self._held.pop(key)[0] for key in list(self._held)[-count:]]
            self._give_back(recalled, _RECALLED)

    def _give_back(self, jobs: Sequence[Job], why: str) -> None:
        never = outcome.never_ran(why)
        self._pool.reports.ended([TaskEnd(job, never, None) for job in jobs])

    def _grace_is_over(self, key: Key) -> None:
        if key in self._held:
            before = self.process.log_size
            shows = self.process.show_stack()
            until = self._loop.time() + (_SHOWN_WITHIN_S if shows else 0)
            self._loop.call_later(_SHOW_S, self._end_when_shown, key, before, before, until)

    def _end_when_shown(self, key: Key, before: int, last: int, until: float) -> None:
        """Kill it when its log, which had the size `before` and then `last`, has the stack in it."""
        if key not in self._held:  # it has ended at the last moment, and others may be there now
            return
        size = self.process.log_size
        if before < size == last or self._loop.time() >= until:
            self._condemned = key
            self.process.kill(f"the job did not end within its grace of {self._orders[key].grace_ms} ms")
        else:
            self._loop.call_later(_SHOW_S, self._end_when_shown, key, before, size, until)

    # --- its end ---------------------------------------------------------------------------------------------------

    def _stop_taking(self) -> None:
        if not self.leaving:
            self.leaving = True
            if self.kind == "sync":
                self._recall(len(self._held))
            self._pool.is_leaving(self)

    def _go_when_done(self) -> None:
        if not self._held and not self._owed:
            self.process.leave()

    def _ends_by(self, death: Death) -> list[TaskEnd]:
        """How its jobs ended with it."""
        if self.kind != "async":
            # A token that is still there was not taken: it is that of one of the last jobs.
            unsent = self.process.link.withdraw()
            unbegun = unsent + self.process.link.take_tokens(len(self._held) - unsent)
            begun = list(self._held)[: len(self._held) - unbegun][:1]  # the next one begins after the end of this one
            others = outcome.never_ran("its worker died before it began")
        else:
            begun = self._culprits(death)
            others = outcome.displaced(f"another job that ran in the same process brought it down: {death.error}")
        ends = []
        for key, (job, _) in self._held.items():
            if key in begun:
                ends.append(TaskEnd(job, crash.outcome_of(self._site, key, death, stopped=key in self._orders), None))
            else:
                ends.append(TaskEnd(job, others, None))
        return ends

    def _culprits(self, death: Death) -> list[Key]:
        if self._condemned is not None:
            return [self._condemned]
        if not death.by_us:
            number = self.process.mark
            named = [key for key, (_, call) in self._held.items() if call == number]
            if named:
                return named
        return list(self._held)
