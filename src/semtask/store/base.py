"""The port of the store: what the engine may ask of a database.

It is shaped for this engine, not for imagined plugins. Obligations that hold for every store:

* An awaited write returns only after its transaction is committed, with fsync where `durable` asks for it.
* Every change of a job's state is one guarded statement: id, claim_no and state are in its WHERE clause.
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
from semtask.model.job import Attempt, ExecutionMode, Job, NewJob, ProcessIdentity, ProgressNote, QueueClass
from semtask.model.sandbox import SandboxLevel
from semtask.model.state import EndCause, State, StopReason
from semtask.store.requests import (
    ClaimRequest,
    Expired,
    Finish,
    Finished,
    Inserted,
    JobFilter,
    Page,
    Promoted,
    Purge,
    Purged,
    QueueRow,
    Stopped,
    StopRequest,
    TaskClaim,
    TaskClaimed,
)


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

    async def get(self, job_id: str) -> Job | None:
        """The row of a job; None if none with this id is stored."""
        ...

    async def get_many(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """The rows of those that are stored, by id, all as they are at one moment."""
        ...

    async def attempts(self, job_id: str) -> list[Attempt]:
        """The ended attempts that have a row, oldest first."""
        ...

    async def query(self, where: JobFilter, *, newest_first: bool, limit: int, after_seq: int | None) -> Page:
        """Jobs by seq, keyset pagination. No filter makes it scan all finished jobs when `limit` are found early."""
        ...

    async def running(self) -> list[Job]:
        """All RUNNING jobs: what recovery has to judge."""
        ...

    async def queues(self) -> list[QueueRow]:
        """All queues that were used or configured, by name."""
        ...

    async def counters(self) -> dict[str, int]:
        """The persistent counters, as `count` made them."""
        ...

    async def next_due(self) -> int | None:
        """The earliest run_at (epoch ms) of a SCHEDULED job; None without one."""
        ...

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
