"""What clients were told, and whether a database holds to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from semtask.errors import StartupError
from semtask.store.sqlite_file import SqliteFile
from tests.daemon.rig import Json
from tests.powercut.trace import Kind, Op

NOW = 4_102_444_800_000
FINAL = frozenset({"DONE", "FAILED", "CANCELLED", "SUPERSEDED", "SKIPPED_TTL", "SKIPPED_DEADLINE"})


class Fact(NamedTuple):
    """`kind`: stored (the job is there), ended (with `value`), stopping (it was cancelled, or had ended), setting (at
    least `value`). `place`: in the trace; the fact holds after a power cut that comes later."""

    place: int
    kind: str
    job_id: str = ""
    value: Any = None


def facts(ops: Sequence[Op]) -> list[Fact]:
    return [fact for place, op in enumerate(ops) if op.kind is Kind.ANSWER for fact in _facts_of(place, op.data)]


def _facts_of(place: int, body: bytes) -> Iterator[Fact]:
    if not body.startswith(b"{"):
        return
    answer = json.loads(body)
    result, what = answer.get("result"), answer.get("id")
    if not isinstance(result, dict):
        return
    if what == "fsync":
        yield Fact(place, "stored", result["job_id"])
    elif what == "cancel" and result["cancelled"]:
        yield Fact(place, "stopping", result["job_id"])
    elif what == "configure":
        yield Fact(place, "setting", value=result["concurrency"])
    for job in [result, *result.get("jobs", ())]:
        if "finished_at" in job and job["state"] in FINAL:
            yield Fact(place, "ended", job["job_id"], _end(job))


def _end(job: Json) -> tuple[Any, ...]:
    return tuple(job[name] for name in ("state", "end_cause", "finished_at", "exit_code"))


class Found(NamedTuple):
    """What is wrong with an image. `lost`: facts that do not hold."""

    corrupt: str | None
    lost: list[str]


def look(database: Path, told: Sequence[Fact], order: Sequence[str]) -> Found:
    """Open the database as the daemon does, and compare. `order`: all jobs that were ever stored, oldest first."""
    file = SqliteFile(database)
    try:
        db = file.open(NOW)
    except StartupError as error:
        return Found(f"does not open: {error.message}", [])
    try:
        return Found(_corrupt(db), [*_lost(db, told), *_holes(db, order)])
    except apsw.Error as error:
        return Found(f"cannot be read: {error}", [])
    finally:
        db.close()
        file.close()


def jobs_of(db: apsw.Connection) -> dict[str, Json]:
    """By id, in the order of their arrival."""
    columns = ("job_id", "seq", "state", "end_cause", "finished_at", "exit_code", "stop_reason", "queue")
    rows: list[Any] = db.execute(f"SELECT {', '.join(columns)} FROM jobs_readable ORDER BY seq").fetchall()
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def _corrupt(db: apsw.Connection) -> str | None:
    [(verdict, *_), *_] = db.execute("PRAGMA integrity_check").fetchall()
    if verdict != "ok":
        return str(verdict)
    if db.execute("PRAGMA foreign_key_check").fetchall():
        return "a row points to one that is not there"
    jobs = jobs_of(db)
    counted = Counter((job["queue"], job["state"].lower()) for job in jobs.values())
    states = ("scheduled", "queued", "running", *map(str.lower, FINAL))
    for name, *kept in db.execute(f"SELECT name, {', '.join(states)} FROM queues").fetchall():
        if kept != [counted[name, state] for state in states]:
            return f"the counts of queue {name} are not those of its jobs"
    [(next_seq,)] = db.execute("SELECT next_seq FROM meta").fetchall()
    if any(job["seq"] >= next_seq for job in jobs.values()):
        return "a number of a job could be given out again"
    return None


def _lost(db: apsw.Connection, told: Sequence[Fact]) -> Iterator[str]:
    jobs = jobs_of(db)
    [(concurrency,), *_] = db.execute("SELECT concurrency FROM queues WHERE name = 'shelf'").fetchall() or [(None,)]
    for fact in told:
        job = jobs.get(fact.job_id)
        if fact.kind == "setting":
            if (concurrency or 0) < fact.value:
                yield f"the setting {fact.value} was lost"
        elif job is None:
            yield f"job {fact.job_id} was lost ({fact.kind})"
        elif fact.kind == "ended" and _end(job) != fact.value:
            yield f"job {fact.job_id} ended as {fact.value}, now it is {_end(job)}"
        elif fact.kind == "stopping" and job["stop_reason"] != "cancel" and job["state"] not in FINAL:
            yield f"the cancellation of job {fact.job_id} was lost"


def _holes(db: apsw.Connection, order: Sequence[str]) -> Iterator[str]:
    """What is lost is the newest, never one in the middle."""
    jobs = jobs_of(db)
    present = [job_id in jobs for job_id in order]
    newest = max((n for n, there in enumerate(present) if there), default=-1)
    for n in range(newest):
        if not present[n]:
            yield f"job {order[n]} is not there, a newer one is"
