"""Rows of SQLite, to and from the values of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import apsw
import msgspec

from semtask.model.job import Attempt, ClaimFacts, Job, NewJob, QueueClass
from semtask.model.sandbox import SandboxLevel
from semtask.model.schedule import expires_at
from semtask.model.state import State
from semtask.store.base import Change
from semtask.store.codes import CODED, INTERRUPTS, MODES
from semtask.store.requests import QueueRow

Row: TypeAlias = tuple[Any, ...]

# The columns of `SELECT * FROM jobs`, in order. A test compares them with the schema.
JOB_COLUMNS = (
    "seq",
    "job_id",
    "queue",
    "job_type",
    "execution_mode",
    "state",
    "priority",
    "claim_no",
    "attempts",
    "failures",
    "crashes",
    "interruptions",
    "created_at",
    "run_at",
    "started_at",
    "finished_at",
    "stop_reason",
    "stop_grace_ms",
    "kill_failed_at",
    "end_cause",
    "exit_code",
    "signal",
    "max_attempts",
    "backoff_factor",
    "retry_base_delay_ms",
    "retry_max_delay_ms",
    "timeout_ms",
    "grace_ms",
    "deadline",
    "ttl_ms",
    "expires_at",
    "on_interrupt",
    "retry_on_crash",
    "subject_key",
    "generation",
    "superseded_by",
    "behind",
    "aside",
    "tag",
    "chain_group_id",
    "parent_job_id",
    "retry_of",
    "trace_context",
    "idempotency_key",
    "source",
    "content_hash",
    "node_id",
    "claim",
    "process",
    "conditions",
    "progress",
    "artifacts",
    "error",
    "exception",
    "result",
    "payload",
)
QUEUE_COLUMNS = ("name", "paused", "concurrency", "queue_class", "sandbox", *(state.lower() for state in State))
_ATTEMPT_COLUMNS = Attempt.__struct_fields__


def fetch(db: apsw.Connection, sql: str, values: Mapping[str, Any] | None = None) -> list[Row]:
    """All rows; the statement is finished then, as a commit needs it."""
    return db.execute(sql, values).fetchall()


def fetch_value(db: apsw.Connection, sql: str, values: Mapping[str, Any] | None = None) -> Any:
    """The first column of the one row."""
    [row] = fetch(db, sql, values)
    return row[0]


def id_bytes(job_id: str) -> bytes:
    """The 16 bytes of an id."""
    return bytes.fromhex(job_id.replace("-", ""))


def id_text(job_id: bytes) -> str:
    text = job_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def to_job(row: Row) -> Job:
    """From the columns of get_job.sql: those of `jobs`, and the facts of its claim if they are not in the row."""
    *columns, facts = row
    values = dict(zip(JOB_COLUMNS, columns, strict=True))
    if isinstance(values["claim"], int):
        values["claim"] = facts
    values["job_id"] = id_text(values["job_id"])
    for name in ("superseded_by", "parent_job_id", "retry_of"):
        if values[name] is not None:
            values[name] = id_text(values[name])
    for name, codes in CODED.items():
        values[name] = codes.word_or_none(values[name])
    for name in ("claim", "process"):
        if values[name] is not None:
            values[name] = msgspec.json.decode(values[name])
    return msgspec.convert(values, Job, strict=False)  # SQLite has no booleans


def to_claimed_job(row: Row, started_at: int, node_id: str, claim: ClaimFacts) -> Job:
    """From the columns of claim_job.sql. By hand: msgspec.convert takes as long as the claim itself."""
    (
        seq, job_id, queue, job_type, execution_mode, priority, claim_no, attempts, failures, crashes, interruptions,
        created_at, run_at, max_attempts, backoff_factor, retry_base_delay_ms, retry_max_delay_ms, timeout_ms, grace_ms,
        deadline, ttl_ms, on_interrupt, retry_on_crash, subject_key, generation, tag, chain_group_id, parent_job_id,
        retry_of, trace_context, idempotency_key, source, content_hash, payload,
    ) = row  # fmt: skip
    return Job(
        seq=seq,
        job_id=id_text(job_id),
        queue=queue,
        job_type=job_type,
        execution_mode=MODES.word(execution_mode),
        state=State.RUNNING,
        payload=payload,
        created_at=created_at,
        on_interrupt=INTERRUPTS.word(on_interrupt),
        content_hash=content_hash,
        run_at=run_at,
        started_at=started_at,
        priority=priority,
        claim_no=claim_no,
        attempts=attempts,
        failures=failures,
        crashes=crashes,
        interruptions=interruptions,
        max_attempts=max_attempts,
        backoff_factor=backoff_factor,
        retry_base_delay_ms=retry_base_delay_ms,
        retry_max_delay_ms=retry_max_delay_ms,
        timeout_ms=timeout_ms,
        grace_ms=grace_ms,
        deadline=deadline,
        ttl_ms=ttl_ms,
        subject_key=subject_key,
        generation=generation,
        tag=tag,
        chain_group_id=chain_group_id,
        parent_job_id=parent_job_id and id_text(parent_job_id),
        retry_of=retry_of and id_text(retry_of),
        trace_context=trace_context,
        source=source,
        idempotency_key=idempotency_key,
        retry_on_crash=bool(retry_on_crash),
        node_id=node_id,
        claim=claim,
    )


def to_attempt(row: Row) -> Attempt:
    return msgspec.convert(dict(zip(_ATTEMPT_COLUMNS, row, strict=True)), Attempt)


def to_queue(row: Row) -> QueueRow:
    values = dict(zip(QUEUE_COLUMNS, row, strict=True))
    return QueueRow(
        name=values["name"],
        paused=bool(values["paused"]),
        concurrency=values["concurrency"],
        queue_class=QueueClass(values["queue_class"]),
        sandbox=SandboxLevel(values["sandbox"]),
        counts={state: values[state.lower()] for state in State},
    )


def job_change(job: Job | NewJob, before: State | None, after: State, *, claim_no: int, **details: Any) -> Change:
    return Change(
        job_id=job.job_id,
        queue=job.queue,
        job_type=job.job_type,
        execution_mode=job.execution_mode,
        before=before,
        after=after,
        claim_no=claim_no,
        subject_key=job.subject_key,
        expires_at=expires_at(job, after, claim_no),
        **details,
    )


def row_change(row: Sequence[Any], before: State, after: State, **details: Any) -> Change:
    """From the columns job_id, queue, job_type, execution_mode, claim_no, subject_key."""
    job_id, queue, job_type, mode, claim_no, subject_key = row
    return Change(
        job_id=id_text(job_id),
        queue=queue,
        job_type=job_type,
        execution_mode=MODES.word(mode),
        before=before,
        after=after,
        claim_no=claim_no,
        subject_key=subject_key,
        **details,
    )


def to_json(value: Any) -> str:
    """A struct or list as JSON text."""
    return msgspec.json.encode(value).decode()


def json_or_none(values: Sequence[Any] | Mapping[str, Any]) -> str | None:
    """A filter as JSON text; an empty one is no filter."""
    return to_json(values) if values else None
