"""Keeping the database small: old jobs, unused subjects, free pages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from semtask.model.state import State
from semtask.store.codes import STATES
from semtask.store.requests import Purge, Purged
from semtask.store.sql import query
from semtask.store.sqlite_rows import fetch, fetch_value, id_text, to_json
from semtask.store.writer import Tick


class Place(NamedTuple):
    """How far a pass over the finished jobs has come; `kept` of those before it had to stay."""

    finished_at: int = -(1 << 63)
    seq: int = 0
    kept: int = 0


def purge(tick: Tick, purge: Purge, place: Place) -> tuple[Purged, Place]:
    """One step of a pass. A pass looks once at each job that has to stay, and begins again when nothing more can go."""
    beyond = 0
    if purge.keep is not None:
        beyond = max(0, fetch_value(tick.db, query("count_finished")) - purge.keep - place.kept)
    where = {"after": place.finished_at, "after_seq": place.seq, "limit": purge.limit}
    rows = fetch(tick.db, query("finished_jobs"), where)
    before = purge.finished_before
    may_go = [row for n, row in enumerate(rows) if n < beyond or (before is not None and row[0] < before)]
    gone = [row for row in may_go if not row[2]]
    _delete(tick, gone)
    more = len(may_go) == purge.limit > 0
    if more:
        finished_at, seq, *_ = may_go[-1]
        place = Place(finished_at, seq, place.kept + len(may_go) - len(gone))
    else:
        place = Place()
    jobs = [(id_text(job_id), claim_no) for _, _, _, job_id, claim_no, *_ in gone]
    return Purged(jobs=jobs, more=more), place


def _delete(tick: Tick, rows: Sequence[Sequence[Any]]) -> None:
    """Rows of finished_jobs.sql, with what is counted of them."""
    queues: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(State, 0))
    subjects: dict[tuple[str, str], int] = defaultdict(int)
    for *_, queue, state, job_type, subject_key in rows:
        queues[queue][STATES.word(state)] -= 1
        if subject_key is not None:
            subjects[job_type, subject_key] += 1
    tick.db.execute(query("delete_finished"), {"seqs": to_json([row[1] for row in rows])})
    tick.db.executemany(query("add_to_queue"), [{"name": queue, **counts} for queue, counts in queues.items()])
    tick.db.executemany(
        query("leave_subject"),
        [{"job_type": kind, "subject_key": key, "jobs": jobs} for (kind, key), jobs in subjects.items()],
    )


def purge_subjects(tick: Tick, limit: int) -> int:
    """And the claims of former workers."""
    tick.db.execute(query("delete_claims"))
    return len(fetch(tick.db, query("delete_subjects"), {"limit": limit}))


def compact(tick: Tick, max_pages: int) -> int:
    tick.db.execute(f"PRAGMA incremental_vacuum({max_pages:d})").fetchall()
    return int(fetch_value(tick.db, "PRAGMA freelist_count"))
