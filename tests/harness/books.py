"""What must hold of a database whatever has happened: looked at row by row, by another program than the daemon."""

from __future__ import annotations

from pathlib import Path

import apsw

from semtask.store.codes import encode

STATES = (
    "SCHEDULED",
    "QUEUED",
    "RUNNING",
    "DONE",
    "FAILED",
    "CANCELLED",
    "SUPERSEDED",
    "SKIPPED_TTL",
    "SKIPPED_DEADLINE",
)

# Each of them finds nothing in a database that is consistent.
_KEPT = " UNION ALL ".join(
    f"SELECT name AS queue, State.{state} AS state, {state.lower()} AS n FROM queues" for state in STATES
)
CONTRADICTIONS = {
    "a kept count of a queue differs from its rows": f"""
        SELECT kept.*, counted.n
        FROM ({_KEPT}) AS kept
        LEFT JOIN (SELECT queue, state, count(*) AS n FROM jobs GROUP BY 1, 2) AS counted USING (queue, state)
        WHERE kept.n <> coalesce(counted.n, 0)""",
    "a job is in a queue that has no row": """
        SELECT seq, queue FROM jobs WHERE queue NOT IN (SELECT name FROM queues)""",
    "a final job without one end, or a live one with an end": """
        SELECT seq, state, finished_at, end_cause FROM jobs
        WHERE (state IN (State.SCHEDULED, State.QUEUED, State.RUNNING)) <> (finished_at IS NULL)
            OR (finished_at IS NULL) <> (end_cause IS NULL)""",
    "two jobs of a subject run": """
        SELECT job_type, subject_key FROM jobs WHERE state = State.RUNNING AND subject_key IS NOT NULL
        GROUP BY 1, 2 HAVING count(*) > 1""",
    "more attempts than claims, or more of their rows than attempts": """
        SELECT seq, attempts, claim_no FROM jobs
        WHERE attempts > claim_no OR attempts < (SELECT count(*) FROM attempts WHERE attempts.seq = jobs.seq)""",
    "an attempt of no claim": """
        SELECT seq, ended.claim_no FROM attempts AS ended JOIN jobs USING (seq) WHERE ended.claim_no > jobs.claim_no""",
    "the count of the jobs of a subject is wrong": """
        SELECT job_type, subject_key, kept.jobs, count(*) FROM subjects AS kept JOIN jobs USING (job_type, subject_key)
        GROUP BY 1, 2 HAVING kept.jobs <> count(*)""",
    "a number will be given out twice": "SELECT max(seq) FROM jobs HAVING max(seq) >= (SELECT next_seq FROM meta)",
    "a job waits behind nobody": """
        SELECT seq FROM jobs AS waiting WHERE behind = 1 AND NOT EXISTS (
            SELECT 1 FROM jobs AS head WHERE head.job_type = waiting.job_type AND head.subject_key = waiting.subject_key
                AND head.queue = waiting.queue AND head.state = State.QUEUED AND head.behind = 0)""",
}


def contradictions(database: Path) -> list[str]:
    """What is wrong in the database, in words; it may be in use."""
    db = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        db.set_busy_timeout(5_000)
        found = [f"integrity_check: {text}" for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
        found += [f"foreign_key_check: {row}" for row in db.execute("PRAGMA foreign_key_check")]
        for what, statement in CONTRADICTIONS.items():
            rows = db.execute(encode(statement)).fetchall()
            if rows:
                found.append(f"{what}: {rows[:5]}")
        return found
    finally:
        db.close()
