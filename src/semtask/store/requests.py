"""What the store is asked for, and what it answers. `store/base.py` says which goes with which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from semtask.model.job import ClaimFacts, ExecutionMode, Job, QueueClass, Taker
from semtask.model.outcome import Outcome
from semtask.model.retry import Decision
from semtask.model.sandbox import SandboxLevel
from semtask.model.state import State, StopReason


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
    """Raise the stop reason of running jobs to `reason`; with CANCEL waiting ones become CANCELLED immediately.

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
