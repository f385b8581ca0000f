"""The smaller writes of the port, and the kept counts. Every function runs in the writer thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import groupby
from operator import attrgetter
from typing import Any

from semtask.model.job import ProcessIdentity
from semtask.model.state import State
from semtask.store.requests import Promoted
from semtask.store.sql import query
from semtask.store.sqlite_rows import fetch, fetch_value, id_bytes, row_change, to_json
from semtask.store.writer import Tick


def record_process(tick: Tick, job_id: str, claim_no: int, process: ProcessIdentity) -> bool:
    values = {"job_id": id_bytes(job_id), "claim_no": claim_no, "process": to_json(process)}
    return bool(fetch(tick.db, query("record_process"), values))


def record_kill_failed(tick: Tick, job_id: str, claim_no: int, at: int) -> bool:
    values = {"job_id": id_bytes(job_id), "claim_no": claim_no, "at": at}
    return bool(fetch(tick.db, query("record_kill_failed"), values))


def promote(tick: Tick, now: int, limit: int) -> Promoted:
    rows = fetch(tick.db, query("promote_due"), {"now": now, "limit": limit})
    rows.sort(key=lambda row: row[:2])
    for run_at, _, expires_at, *job in rows:
        tick.changes.append(row_change(job, State.SCHEDULED, State.QUEUED, run_at=run_at, expires_at=expires_at))
    next_due = fetch_value(tick.db, query("next_due"))
    return Promoted(count=len(rows), next_due=next_due)


def configure_queue(tick: Tick, settings: Mapping[str, Any]) -> None:
    tick.db.execute(query("configure_queue"), settings)


def count(tick: Tick, increments: Mapping[str, int]) -> None:
    rows = [{"name": name, "value": value} for name, value in increments.items()]
    tick.db.executemany(query("add_to_counter"), rows)


def close_books(tick: Tick) -> None:
    """Bring the kept counts of the queues up to the changes of this tick."""
    deltas: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(State, 0))
    # Most changes come in runs of the same kind: a state is not cheap as a key.
    for (queue, before, after), run in groupby(tick.changes, key=attrgetter("queue", "before", "after")):
        if before is not after:
            count = sum(1 for _ in run)
            deltas[queue][after] += count
            if before is not None:
                deltas[queue][before] -= count
    rows = [{"name": queue, **delta} for queue, delta in deltas.items()]
    tick.db.executemany(query("add_to_queue"), rows)
