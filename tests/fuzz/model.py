"""What may become of a job, told from what was asked for and answered alone: the model of test_daemon.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from semtask.model.job import ExecutionMode, OnDuplicate, OnInterrupt, Schedule
from semtask.model.state import FINAL, StopReason
from semtask.protocol.jobs import JobView

# $SEMANTICA_JOB_ID bears witness in the file $1.
_BODY = 'echo "start $SEMANTICA_JOB_ID" >> "$1"; {}; code=$?; echo "end $SEMANTICA_JOB_ID" >> "$1"; exit $code'

Ends = frozenset[tuple[str, str]]
DONE = ("DONE", "success")
CANCELLED = ("CANCELLED", "cancelled")
SUPERSEDED = ("SUPERSEDED", "superseded")


class Act(NamedTuple):
    """What a task does."""

    seconds: float = 0.0
    fails: bool = False


class Kind(NamedTuple):
    """`ends` are those that a job comes to by itself; none: it must be cancelled."""

    does: str | Act  # the script of a command, or what the task does
    ends: Ends
    options: Mapping[str, Any] = {}


TASK = "tests.fuzz.work:act"
_RETRIED = {"max_attempts": 3, "retry_base_delay_ms": 20}
_FAR = Schedule(type="AFTER", delay_ms=600_000)
KINDS = {
    "ok": Kind("true", frozenset({DONE})),
    "slow": Kind("sleep 0.1", frozenset({DONE})),
    "soon": Kind("true", frozenset({DONE}), {"schedule": Schedule(type="AFTER", delay_ms=50)}),
    "fails": Kind("false", frozenset({("FAILED", "exit_code")})),
    "retried": Kind("false", frozenset({("FAILED", "exit_code")}), _RETRIED),
    "timed": Kind("sleep 600", frozenset({("FAILED", "timeout")}), {"timeout_ms": 60, "grace_ms": 0}),
    "stale": Kind("true", frozenset({DONE, ("SKIPPED_TTL", "ttl")}), {"ttl_ms": 30}),
    "endless": Kind("sleep 600", frozenset(), {"grace_ms": 0}),
    "later": Kind("true", frozenset(), {"schedule": _FAR}),
    "task": Kind(Act(), frozenset({DONE})),
    "slow task": Kind(Act(0.05), frozenset({DONE})),
    "task fails": Kind(Act(fails=True), frozenset({("FAILED", "exception")}), _RETRIED),
    "timed task": Kind(Act(600), frozenset({("FAILED", "timeout")}), {"timeout_ms": 60, "grace_ms": 0}),
    "endless task": Kind(Act(600), frozenset(), {"grace_ms": 0}),
}


def call(kind: str, history: str) -> dict[str, Any]:
    does = KINDS[kind].does
    if isinstance(does, str):
        payload = {"command": "sh", "args": ["-c", _BODY.format(does), "sh", history]}
        return {"job_type": "fuzzed", "payload": payload, "execution_mode": ExecutionMode.SUBPROCESS}
    payload = {"history": history, **does._asdict()}
    return {"job_type": TASK, "payload": payload, "execution_mode": ExecutionMode.IN_PROCESS}


@dataclass
class Known:
    """A job that was accepted, and what was asked for since."""

    kind: str
    queue: str
    subject: str | None  # with the job type: each has lanes of its own
    once: bool
    cancelled: bool = False
    superseded: bool = False
    interrupted: bool = False  # a daemon was killed while it lived
    claimed_when_paused: int | None = None  # its claim_no, while its queue is paused
    seen: list[JobView] = field(default_factory=list)  # in the end, or as it was seen last

    @property
    def final(self) -> bool:
        return bool(self.seen) and self.seen[-1].state in FINAL

    @property
    def must_be_cancelled(self) -> bool:
        return not KINDS[self.kind].ends and not self.cancelled and not self.final

    def ends(self) -> Ends:
        if self.cancelled:  # this was committed, and decides whatever comes
            return frozenset({CANCELLED})
        found = KINDS[self.kind].ends
        if self.superseded:
            found |= {SUPERSEDED}
        if self.interrupted and self.once:
            found |= {("FAILED", "interrupted")}
        return found

    def see(self, now: JobView) -> None:
        """Hold what is told of it now against what is known."""
        if self.seen:
            before = self.seen[-1]
            if self.final:
                assert end_of(now) == end_of(before), "a finished job has changed"
            assert now.claim_no >= before.claim_no
            assert now.attempts >= before.attempts
            assert now.generation == before.generation
        assert now.attempts <= now.claim_no
        if self.claimed_when_paused is not None:
            assert now.claim_no == self.claimed_when_paused, "a paused queue gave a job away"
        if now.state in FINAL:
            assert (now.state.value, str(now.end_cause and now.end_cause.value)) in self.ends(), (self, now)
        elif self.cancelled:
            assert now.stop_reason is StopReason.CANCEL, "a cancelled job goes on"
        elif self.superseded:
            assert now.superseded_by is not None
        self.seen = [now]


def end_of(job: JobView) -> tuple[Any, ...]:
    return (job.state, job.end_cause, job.claim_no, job.attempts, job.finished_at, job.exit_code)


def hold_to_history(jobs: Mapping[str, Known], lines: Sequence[str]) -> None:
    """What the commands wrote down themselves, against what was told of them in the end."""
    starts = Counter(line.split()[1] for line in lines if line.startswith("start"))
    ends = Counter(line.split()[1] for line in lines if line.startswith("end"))
    for job_id, known in jobs.items():
        [job] = known.seen
        assert starts[job_id] <= job.attempts, "more starts than attempts"
        if (job.state.value, str(job.end_cause and job.end_cause.value)) == DONE:
            assert ends[job_id] >= 1, "done and never run"
        if known.once:
            assert starts[job_id] <= 1, "started twice"


def at_most_one_runs(jobs: Iterable[Known], queue_limit: int) -> None:
    running = [known for known in jobs if known.seen and known.seen[-1].state.value == "RUNNING"]
    subjects = Counter(known.subject for known in running if known.subject)
    assert all(count == 1 for count in subjects.values()), "two jobs of a subject run"
    # A worker may be given tasks ahead: they are RUNNING, and share its seat.
    queues = Counter(known.queue for known in running if isinstance(KINDS[known.kind].does, str))
    assert all(count <= queue_limit for count in queues.values()), "a queue runs more than it may"


SUPERSEDING = {OnDuplicate.SUPERSEDE, OnDuplicate.SUPERSEDE_RUNNING}
INTERRUPTS = {True: OnInterrupt.FAIL, False: OnInterrupt.REQUEUE}
