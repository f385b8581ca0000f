"""Rows that cannot be decoded, after a stray write from outside: they must not stop their queue, nor the start."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import apsw
import msgspec

from semtask.model.job import Job
from semtask.model.state import EndCause, State
from semtask.store.sql import query
from semtask.store.sqlite_rows import fetch, id_text, row_change, to_job
from semtask.store.sqlite_stop import free_lanes
from semtask.store.writer import Tick

log = logging.getLogger("semtask.store")

UNREADABLE = (ValueError, msgspec.MsgspecError)

# The columns that are text and free of a CHECK that would not let damage in.
_TEXTS = (
    "queue",
    "job_type",
    "subject_key",
    "tag",
    "chain_group_id",
    "trace_context",
    "idempotency_key",
    "source",
    "node_id",
    "progress",
    "artifacts",
    "error",
    "exception",
    "result",
    "payload",
)


class Damage(NamedTuple):
    seq: int
    claim_no: int
    why: str


def readable_jobs(db: apsw.Connection, sql: str, values: Mapping[str, Any] | None = None) -> Iterator[Job]:
    """The jobs of a query, lazily; a row that cannot be decoded is left out."""
    rows = db.execute(sql, values)
    while True:
        try:
            yield to_job(next(rows))
        except StopIteration:
            return
        except UNREADABLE as error:
            log.warning("the row of a job cannot be decoded and is left out: %s", error)


def damaged_running(db: apsw.Connection) -> list[Damage]:
    """The claims of running jobs that cannot be decoded."""
    found = []
    for seq, claim_no in fetch(db, query("running_claims")):
        try:
            to_job(fetch(db, query("get_row"), {"seq": seq})[0])
        except UNREADABLE as error:
            found.append(Damage(seq, claim_no, str(error)))
    return found


def quarantine(tick: Tick, damage: Damage, *, now: int, before: State) -> str | None:
    """Fail the running job of a damaged row, and make what is left of the row readable: the error, None if the claim
    is an old one. `before` is QUEUED if it was claimed in this very request."""
    error = f"the row of this job was damaged: {damage.why}"
    values = {"seq": damage.seq, "claim_no": damage.claim_no, "now": now, "error": error}
    if not fetch(tick.db, query("quarantine_job"), values):
        return None
    _make_readable(tick.db, damage.seq)
    [job] = fetch(tick.db, query("change_row"), {"seq": damage.seq})
    job_id, queue, job_type, mode, _, subject_key = job
    if before is State.QUEUED:
        tick.changes.append(row_change(job, State.QUEUED, State.RUNNING))
        if subject_key is not None:
            free_lanes(tick, [(job_type, subject_key, mode, queue)])
    tick.changes.append(row_change(job, State.RUNNING, State.FAILED, end_cause=EndCause.BAD_PAYLOAD))
    log.error("a job is in quarantine: %s", error, extra={"job_id": id_text(job_id)})
    return error


def _make_readable(db: apsw.Connection, seq: int) -> None:
    columns = ", ".join(f"CAST({name} AS BLOB)" for name in _TEXTS)
    [row] = fetch(db, query("raw_texts").format(columns=columns), {"seq": seq})
    for name, raw in zip(_TEXTS, row, strict=True):
        text = raw.decode(errors="replace") if raw is not None else None
        if text is not None and text.encode() != raw:
            db.execute(query("replace_text").format(column=name), {"seq": seq, "text": text})
