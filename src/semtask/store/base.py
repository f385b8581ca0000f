"""The port of the store: what the engine may ask of a database.

It is shaped for this engine, not for imagined plugins. Obligations that hold for every store:

* An awaited write returns only after its transaction is committed, with fsync where `durable` asks for it.
* Every change of a job's state is one guarded statement: id, claim_no and state stand in its WHERE clause.
  Of two rivals exactly one wins; the other learns that nothing matched.
* Requests do not hurt each other: one that the database refuses fails alone.
* After each commit, and before the awaited writes return, `on_commit` is called once on the event loop with all
  changes of state of that commit, in order.
* Counters are kept, never counted: `stats` and `queues` read a number of rows that does not grow with the jobs.

`tests/store/` holds the conformance suite that every store must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from semtask.model.disk import Trouble
from semtask.model.job import (
    Attempt,
    ClaimFacts,
    ExecutionMode,
    Job,
    NewJob,
    ProcessIdentity,
    ProgressNote,
    QueueClass,
    Taker,
)
from semtask.model.outcome import Outcome
from semtask.model.retry import Decision
from semtask.model.sandbox import SandboxLevel
from semtask.model.state import EndCause, State, StopReason


class StoreWatch(Protocol):
    """Who is told, on the event loop, how the store is."""

    def trouble(self, trouble: Trouble | None) -> None:
        """Nothing can be written now, or it can again (None)."""
        ...

    def damaged(self, what: str) -> None:
        """Something stored cannot be read, and other things can."""
        ...


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A committed change of one job. `before` is None for a new job.

    A raised stop reason of a running job is a change too: `before` and `after` are RUNNING then. They are QUEUED when a
    job may be claimed because the time of the one before it in its lane is over. `expires_at` is when the ttl or the
    deadline of a job that waits now is over, whichever is first (epoch ms; `model.schedule`).
    """

    job_id: str
    queue: str
    job_type: str
    execution_mode: ExecutionMode
    before: State | None
    after: State
    claim_no: int
    run_at: int | None = None
    end_cause: EndCause | None = None
    stop_reason: StopReason | None = None
    subject_key: str | None = None
    expires_at: int | None = None


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A running job that has a stop reason now; the engine must see to it."""

    job_id: str
    claim_no: int
    reason: StopReason
    grace_ms: int


class Inserted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one new job. `deduplicated`: the key was known, or it joined; the fields are of the stored job.

    `superseded` counts the live jobs that were marked; `stopping` are those of them that run and must be stopped.
    """

    job_id: str
    queue: str
    state: State
    generation: int | None = None
    deduplicated: bool = False
    superseded: int = 0
    stopping: Sequence[Running] = ()


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Claim up to `limit` QUEUED jobs over `queues` (name -> free slots there), best first.

    Best: highest priority, then lowest seq, over all the queues named. Paused queues are skipped by the store. Only
    jobs of `mode` with at least `min_priority` are looked at, and none whose ttl or deadline is over at `now`.
    `facts(job_id, claim_no)` is called in the writer for each claim.
    """

    mode: ExecutionMode
    queues: Mapping[str, int]
    limit: int
    now: int
    node_id: str
    min_priority: int = -100
    facts: Callable[[str, int], ClaimFacts]


# Of the jobs that could run but that no taker can take, a claim looks at so many: while a taker has room, and when none
# has any more.
PASSED_OVER = 1_000
PASSED_OVER_WHEN_FULL = 10


class TaskClaim(msgspec.Struct, frozen=True, kw_only=True):
    """Give QUEUED IN_PROCESS jobs to workers, best first; the takers choose in their order.

    `queues` and `min_priority` are as in ClaimRequest; `queues` are the slots for jobs that are not taken ahead: of a
    queue without slots only takers with `ahead` take, of one that is not named nobody. `offered` are the tasks that
    some app has; `rooms` says of some of them how many more of their jobs may run. What nobody offers or has no room
    is *set aside*: claims do not look at it again until `bring_back`.

    Jobs that could run but that no taker can take are passed over, PASSED_OVER at most in one claim: what is behind
    more than so many better jobs of busy apps in its queues waits until some of them have run.
    """

    queues: Mapping[str, int]
    takers: Sequence[Taker]
    offered: frozenset[str]
    rooms: Mapping[str, int]
    now: int
    node_id: str
    min_priority: int = -100


class TaskClaimed(msgspec.Struct, frozen=True, kw_only=True):
    """The new rows, by taker. `set_aside`: tasks of which jobs were set aside now. `unserved`: tasks of which jobs
    could run, but no taker had room for them."""

    jobs: Sequence[Sequence[Job]]
    set_aside: frozenset[str] = frozenset()
    unserved: frozenset[str] = frozenset()


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """The end of attempt `claim_no`. `jitter` is used if a retry follows (see `model.retry.decide`)."""

    job_id: str
    claim_no: int
    outcome: Outcome
    now: int
    jitter: float


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """`decision` is None if the claim was no longer the present one: a late report, which changed nothing."""

    decision: Decision | None


class StopSelector(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs: exactly one field is set."""

    job_id: str | None = None
    tag: str | None = None
    chain_group_id: str | None = None


class StopRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Raise the stop reason of running jobs to `reason`; with CANCEL waiting ones become CANCELLED at once.

    `grace_ms` None keeps the job's own; a grace already stored may only get shorter.
    """

    selector: StopSelector
    reason: StopReason
    now: int
    grace_ms: int | None = None


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """`ended` waiting jobs reached their end; `stopping` run and will. `found` counts all that matched, also final."""

    found: int
    ended: int
    stopping: Sequence[Running]
    final_state: State | None = None  # of the one job named by job_id, if it was final already


class QueueRow(msgspec.Struct, frozen=True, kw_only=True):
    """A queue. `concurrency` None: the daemon's default. `sandbox` is the least that its commands run in. `counts` has
    every state; kept, not counted.
    """

    name: str
    paused: bool
    concurrency: int | None
    counts: Mapping[State, int]
    queue_class: QueueClass = QueueClass.NORMAL
    sandbox: SandboxLevel = SandboxLevel.NONE


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """All that is given must hold. `not_retried`: no job has it as its `retry_of`.

    `created_after` may miss jobs from before the wall clock was set back.
    """

    state: Sequence[State] = ()
    queue: Sequence[str] = ()
    job_type: str | None = None
    tag: str | None = None
    chain_group_id: str | None = None
    created_after: int | None = None
    subject_key_prefix: str | None = None
    not_retried: bool = False
    id_suffix: str | None = None  # hexadecimal digits without hyphens; looked for among the newest jobs


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """`next_seq` continues the listing after the last item; None at the end."""

    items: Sequence[Job]
    next_seq: int | None


class Promoted(msgspec.Struct, frozen=True, kw_only=True):
    """`count` jobs became QUEUED; `next_due` is the earliest run_at (epoch ms) still SCHEDULED, None without one."""

    count: int
    next_due: int | None


class Expired(msgspec.Struct, frozen=True, kw_only=True):
    """`count` waiting jobs reached their ttl or deadline; `next_at` is when the next one will, None without one."""

    count: int
    next_at: int | None


class Purge(msgspec.Struct, frozen=True, kw_only=True):
    """Which finished jobs may go, oldest end first, at most `limit` (1,000): those that ended before
    `finished_before`, and those beyond the newest `keep` finished ones. A live job, and a job that a live one names
    as its parent or as the job it retries, stays.
    """

    finished_before: int | None = None
    keep: int | None = None
    limit: int = 1000


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs that are gone, each with its last claim_no; `more`: another call would delete further ones."""

    jobs: Sequence[tuple[str, int]]
    more: bool


class Store(Protocol):
    """All methods may raise DatabaseError; writes raise Throttled while the disk is full or fails."""

    daemon_epoch: int  # +1 with every daemon that opened this store for work

    def report_to(self, watch: StoreWatch) -> None:
        """Tell it from now on what cannot be written or read."""
        ...

    async def insert(self, jobs: Sequence[NewJob], *, durable: bool) -> list[Inserted]:
        """Store all jobs or none, in order, QUEUED, or SCHEDULED if run_at is later than created_at.

        Raises Conflict if an idempotency key is known with other content; its details name the job and the index.
        The key is looked at first. Then `on_duplicate` says what becomes of the live jobs of the same
        (job_type, subject_key): SUPERSEDE and SUPERSEDE_RUNNING set `superseded_by` on all of them and end the waiting
        ones (the latter also raises the stop reason of the running one); JOIN answers the newest live job that is
        neither superseded nor being stopped, else inserts; REJECT raises Conflict if any lives; AFTER inserts.
        """
        ...

    async def claim(self, request: ClaimRequest) -> list[Job]:
        """Give jobs to an executor: RUNNING, claim_no + 1, started_at, node and claim facts. Returns the new rows.

        Never a job whose subject has a running job, nor one with superseded_by, nor one behind a better job of its
        subject that waits in the same queue, be it over its time.
        """
        ...

    async def claim_tasks(self, request: TaskClaim) -> TaskClaimed:
        """The same for tasks. Not synced unless a job has on_interrupt=fail.

        It goes on as long as it finds nothing but jobs to set aside. What was written at the end of the attempt before
        (error, exception, result, artifacts, progress) is cleared by the claim, as with every claim.
        """
        ...

    async def bring_back(self, job_type: str, limit: int) -> int:
        """Let claims see the best `limit` jobs of this task that were set aside; how many there were.

        Each is told as a change from QUEUED to QUEUED. Not synced.
        """
        ...

    async def aside(self) -> frozenset[str]:
        """The tasks of which jobs are set aside."""
        ...

    async def record_progress(self, notes: Sequence[ProgressNote]) -> None:
        """Note how far running jobs are; late notes change nothing. Not synced."""
        ...

    async def record_process(self, job_id: str, claim_no: int, process: ProcessIdentity) -> bool:
        """Note which process the attempt has. False if the claim is not the present one. Not synced."""
        ...

    async def record_kill_failed(self, job_id: str, claim_no: int, at: int) -> bool:
        """Note that processes of the attempt could not be ended. The job stays RUNNING."""
        ...

    async def finish(self, finish: Finish) -> Finished:
        """Apply `model.retry.decide` to the row as it is in this transaction, and write what it says.

        Also writes the attempt's row if the attempt counts, but for tasks that succeeded or snooze. The outcome's
        texts stay on the row until the next claim; progress that it does not know stays as it was noted. Never given
        up on a full disk: it is kept and tried again until it commits.
        """
        ...

    async def finish_many(self, finishes: Sequence[Finish]) -> list[Finished]:
        """The same for many, each by itself, in one transaction. Quick for tasks that succeeded and were not stopped.

        An outcome that cannot be stored (a text that is no Unicode) ends its job as one that failed for good.
        """
        ...

    async def stop(self, request: StopRequest) -> Stopped:
        """See StopRequest."""
        ...

    async def promote(self, now: int, limit: int) -> Promoted:
        """Make SCHEDULED jobs with run_at <= now QUEUED, earliest first, at most `limit`."""
        ...

    async def expire(self, now: int, limit: int) -> Expired:
        """End waiting jobs whose time is over, also in paused queues: SKIPPED_TTL for QUEUED jobs that were never
        claimed and have waited ttl_ms since max(created_at, run_at), SKIPPED_DEADLINE for SCHEDULED and QUEUED ones
        whose deadline is not later than `now`. At most `limit`.
        """
        ...

    async def next_expiry(self) -> int | None:
        """When the next ttl or deadline of a waiting job is over (epoch ms)."""
        ...

    async def purge(self, purge: Purge) -> Purged:
        """Delete finished jobs with their attempts; the counts of the queues follow, the counters stay."""
        ...

    async def purge_subjects(self, limit: int) -> int:
        """Delete generation counters of subjects that have no job any more; how many."""
        ...

    async def compact(self, max_pages: int) -> int:
        """Give back at most `max_pages` free pages to the file system; how many pages are still free.

        Short: other writes go on between the calls.
        """
        ...

    async def checkpoint(self) -> None:
        """Move the write-ahead log into the database and cut it, as far as readers allow."""
        ...

    async def configure_queue(
        self,
        name: str,
        *,
        paused: bool | None = None,
        concurrency: int | Literal["keep"] | None = "keep",
        queue_class: QueueClass | None = None,
        sandbox: SandboxLevel | None = None,
    ) -> QueueRow:
        """Change a queue; one that was never used is made. Paused queues keep accepting jobs."""
        ...

    async def count(self, increments: Mapping[str, int]) -> None:
        """Add to the persistent counters (DESIGN section 9)."""
        ...

    async def get(self, job_id: str) -> Job | None: ...

    async def get_many(self, job_ids: Sequence[str]) -> dict[str, Job]: ...

    async def attempts(self, job_id: str) -> list[Attempt]:
        """The ended attempts that have a row, oldest first."""
        ...

    async def query(self, where: JobFilter, *, newest_first: bool, limit: int, after_seq: int | None) -> Page:
        """Jobs by seq, keyset pagination. No filter makes it scan all finished jobs when `limit` are found early."""
        ...

    async def running(self) -> list[Job]:
        """All RUNNING jobs: what recovery has to judge."""
        ...

    async def queues(self) -> list[QueueRow]: ...

    async def counters(self) -> dict[str, int]: ...

    async def next_due(self) -> int | None: ...

    async def oldest_ready(self) -> dict[str, int]:
        """By queue: since when (epoch ms) the oldest QUEUED job waits, of those that are next at their priority.

        What is set aside does not count, and queues without one are left out. Reads a row for each queue, mode and
        priority in use, however many jobs wait.
        """
        ...

    async def size_bytes(self) -> int:
        """Database and write-ahead log."""
        ...

    async def healthy(self) -> None:
        """Raise DatabaseError or Throttled if a write would fail now; a cheap check for readiness."""
        ...

    async def find_damage(self) -> str | None:
        """Look through all that is stored: what is damaged, and the way back, for people; None if all is sound.

        Takes seconds for a million jobs; others go on meanwhile.
        """
        ...

    async def close(self) -> None:
        """Finish what was accepted, then close. May be called twice."""
        ...


OnCommit = Callable[[Sequence[Change]], None]
