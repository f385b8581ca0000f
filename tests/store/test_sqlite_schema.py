"""Facts of SQLite only: the schema holds the model's rules, and the statements use its indexes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from semtask.model.job import Attempt, ClaimFacts, ExecutionMode, Job, NewJob, OnInterrupt, QueueClass, Taker
from semtask.model.sandbox import SandboxLevel
from semtask.model.state import FINAL, LIVE, TRANSITIONS, WAITING, Event, State
from semtask.store.codes import CODED, MODES, encode
from semtask.store.requests import JobFilter, TaskClaim
from semtask.store.sql import folder, query
from semtask.store.sqlite_file import SqliteFile
from semtask.store.sqlite_insert import NewRow, insert_rows
from semtask.store.sqlite_reads import listing_statement
from semtask.store.sqlite_rows import JOB_COLUMNS, QUEUE_COLUMNS, fetch, fetch_value, id_text, to_claimed_job, to_job
from semtask.store.sqlite_tasks import claim_tasks
from semtask.store.writer import Tick
from tests.store.harness import NOW, new_job


@pytest.fixture
def db(tmp_path: Path) -> Iterator[apsw.Connection]:
    connection = SqliteFile(tmp_path / "meta.db").open(now=NOW)
    yield connection
    connection.close()


def text(name: str) -> str:
    """The statement as it is written, with words."""
    return folder("sqlite", "queries").joinpath(f"{name}.sql").read_text(encoding="utf-8")


def definition(db: apsw.Connection, name: str) -> str:
    return str(fetch_value(db, "SELECT sql FROM sqlite_schema WHERE name = :name", {"name": name}))


def columns(db: apsw.Connection, table: str) -> tuple[str, ...]:
    return tuple(str(row[1]) for row in db.execute(f"PRAGMA table_xinfo({table})"))


def test_rows_are_read_in_the_order_of_the_columns(db: apsw.Connection) -> None:
    assert columns(db, "jobs") == JOB_COLUMNS
    assert columns(db, "queues") == QUEUE_COLUMNS
    assert set(Job.__struct_fields__) <= set(JOB_COLUMNS)
    [returned] = re.findall(r"RETURNING (.*)", query("claim_job"), re.DOTALL)
    names = re.findall(r"\w+", returned)
    assert list(to_claimed_job.__code__.co_varnames[4:][: len(names)]) == names
    assert set(columns(db, "attempts")) == {"seq", *Attempt.__struct_fields__}


def test_every_field_of_a_new_job_is_inserted(db: apsw.Connection) -> None:
    """Also one that is new; and a column that no job of a batch fills is left out."""
    parent = new_job().job_id
    full = new_job(
        **dict.fromkeys(("subject_key", "tag", "chain_group_id", "trace_context", "idempotency_key", "source"), "x"),
        **dict.fromkeys(("priority", "run_at", "timeout_ms", "deadline", "ttl_ms", "grace_ms"), 7),
        parent_job_id=parent,
        retry_of=parent,
        max_attempts=3,
        backoff_factor=1.5,
        retry_base_delay_ms=9,
        retry_max_delay_ms=11,
        retry_on_crash=True,
        on_interrupt=OnInterrupt.REQUEUE,
    )
    plain = new_job()
    insert_rows(db, [NewRow(plain, 1, State.QUEUED)])
    insert_rows(db, [NewRow(full, 2, State.SCHEDULED, generation=4), NewRow(new_job(), 3, State.QUEUED)])
    for seq, job in ((1, plain), (2, full)):
        stored = to_job(fetch(db, query("get_row"), {"seq": seq})[0])
        kept = set(NewJob.__struct_fields__) - {"on_duplicate", "durability"}
        assert {name: getattr(stored, name) for name in kept} == {name: getattr(job, name) for name in kept}
    assert {name for name in kept if getattr(full, name) is None} == set()


def test_the_codes_of_words_never_change() -> None:
    """They are in the databases: a new word goes to the end of its enum, and none is removed."""
    pinned = {
        "execution_mode": "IN_PROCESS SUBPROCESS",
        "state": "SCHEDULED QUEUED RUNNING DONE FAILED CANCELLED SUPERSEDED SKIPPED_TTL SKIPPED_DEADLINE",
        "stop_reason": "interrupted shutdown timeout log_limit deadline superseded cancel",
        "end_cause": "success exception exit_code signal oom timeout deadline ttl cancelled superseded worker_crash "
        "interrupted quarantined spawn_failed bad_payload dependency_failed log_limit",
        "on_interrupt": "requeue fail",
    }
    assert {column: " ".join(codes.words) for column, codes in CODED.items()} == pinned


@pytest.mark.parametrize("column", CODED)
def test_checks_and_the_view_for_people_follow_the_model(db: apsw.Connection, column: str) -> None:
    words = CODED[column].words
    table = definition(db, "jobs")
    assert f"CHECK ({column} BETWEEN 0 AND {len(words) - 1})" in table
    [cases] = re.findall(rf"CASE {column} (.*?) END AS {column}", definition(db, "jobs_readable"))
    assert re.findall(r"WHEN (\d+) THEN '(\w+)'", cases) == [(str(n), str(word)) for n, word in enumerate(words)]


def test_the_view_for_people_shows_words(db: apsw.Connection) -> None:
    insert(db)
    db.execute(encode(f"UPDATE jobs SET {DONE}, on_interrupt = OnInterrupt.REQUEUE"))
    shown = "job_id, state, end_cause, stop_reason, execution_mode, on_interrupt"
    [row] = db.execute(f"SELECT {shown} FROM jobs_readable").fetchall()
    job_id = fetch_value(db, "SELECT job_id FROM jobs")
    assert row == (id_text(job_id), "DONE", "success", None, "SUBPROCESS", "requeue")


def test_checks_of_a_queue_name_the_values_of_the_model(db: apsw.Connection) -> None:
    schema = definition(db, "queues")
    assert set(re.findall(r"queue_class = '(\w+)'", schema)) == {value.value for value in QueueClass}
    assert set(re.findall(r"sandbox = '(\w+)'", schema)) == {value.value for value in SandboxLevel}


def test_live_rows_are_the_same_in_the_schema_and_in_the_model() -> None:
    schema = folder("sqlite", "migrations").joinpath("001_initial.up.sql").read_text(encoding="utf-8")
    lists = re.findall(r"\bstate (?:NOT )?IN \(([^)]*)\)", schema)
    lists += re.findall(r"(?:\bstate <> State\.\w+(?:\s+AND (?=state)|))+", schema)
    named = {states for text in lists if len(states := frozenset(re.findall(r"State\.(\w+)", text))) > 1}
    skipped = {State.SKIPPED_TTL, State.SKIPPED_DEADLINE}
    assert named == {frozenset(state.name for state in states) for states in (LIVE, WAITING, skipped)}


def test_no_check_builds_a_table_in_each_statement(db: apsw.Connection) -> None:
    programs: list[str] = []

    def explain(_cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:
        if sql.startswith("INSERT INTO jobs"):
            programs.extend(str(step[1]) for step in other.execute(f"EXPLAIN {sql}", bindings))
        return True

    with contextlib.closing(apsw.Connection(db.filename)) as other:
        db.exec_trace = explain
        insert(db)
    assert programs
    assert "OpenEphemeral" not in programs


# The statements that change a state, and the event that one with a fixed state carries out.
EVENTS = {
    "claim_job": Event.CLAIM,
    "promote_due": Event.BECOME_DUE,
    "quarantine_job": Event.FAIL,
    "succeed_tasks": Event.SUCCEED,
    "finish_job": None,
    "end_waiting": None,
}


def test_guards_follow_the_transition_table() -> None:
    """What finish_job and end_waiting set is taken from the table by the code."""
    changing = set()
    for entry in folder("sqlite", "queries").iterdir():
        name = entry.name.removesuffix(".sql")
        text = entry.read_text(encoding="utf-8")
        if not re.search(r"UPDATE jobs (NOT INDEXED |INDEXED BY \w+ )?SET\s+state", text):
            continue
        changing.add(name)
        outer = text.split("\nWHERE", 1)[1].split("NOT EXISTS")[0]
        starts = set(re.findall(r"\bstate = State\.(\w+)", outer)) or set(
            re.findall(r"State\.(\w+)", re.findall(r"\bstate IN \((.*?)\)", outer)[0])
        )
        event = EVENTS[name]
        if event is None:
            assert starts == ({State.RUNNING} if name == "finish_job" else WAITING)
            continue
        [target] = re.findall(r"SET\s+state = State\.(\w+)", text)
        assert {State(start): State(target) for start in starts} == {
            before: after for (before, e), after in TRANSITIONS.items() if e is event
        }
    assert changing == set(EVENTS)


def test_a_claim_is_guarded_by_row_number_and_state() -> None:
    picks = "(SELECT value ->> 0, value ->> 1 FROM json_each(:picks))"
    assert f"WHERE (seq, claim_no) IN {picks} AND state = State.QUEUED" in text("claim_job")
    end = "job_id = unhex(report.value ->> 0) AND claim_no = report.value ->> 1 AND state = State.RUNNING"
    assert f"WHERE {end}" in text("succeed_tasks")
    for name in ("finish_job", "raise_stop", "mark_superseded"):
        assert "WHERE seq = :seq AND claim_no = :claim_no AND state = State." in text(name)
    assert "WHERE seq = :seq AND claim_no = :claim_no AND state = :before AND state IN (" in text("end_waiting")
    assert "WHERE seq = :seq AND claim_no = :claim_no AND state = State.QUEUED" in text("set_aside")
    for name in ("record_process", "record_kill_failed", "record_progress"):
        assert "WHERE job_id = :job_id AND claim_no = :claim_no AND state = State.RUNNING" in text(name)


def insert(db: apsw.Connection, seq: int = 1, **fields: Any) -> None:
    insert_rows(db, [NewRow(new_job(**fields), seq, State.QUEUED)])


RUNNING = "state = State.RUNNING, claim_no = 1, started_at = 1, node_id = 'n', claim = '{}'"
ASIDE = "execution_mode = ExecutionMode.IN_PROCESS, aside = 1"
SKIPPED = "state = State.SKIPPED_TTL, finished_at = 1, end_cause = EndCause.TTL"
DONE = "state = State.DONE, finished_at = 2, end_cause = EndCause.SUCCESS"


@pytest.mark.parametrize(
    "change", [RUNNING, DONE, "state = State.SCHEDULED", "priority = -100", "max_attempts = 0", ASIDE]
)
def test_the_schema_takes(db: apsw.Connection, change: str) -> None:
    insert(db)
    db.execute(encode(f"UPDATE jobs SET {change}"))


@pytest.mark.parametrize(
    "change",
    [
        "state = 9",
        "state = State.DONE",
        "state = State.DONE, finished_at = 2",
        "state = State.DONE, end_cause = EndCause.SUCCESS",
        "finished_at = 2",
        "end_cause = EndCause.SUCCESS",
        f"{DONE}, end_cause = 17",
        "state = State.RUNNING",
        f"{RUNNING}, claim_no = 0",
        f"{RUNNING}, claim = NULL",
        f"{RUNNING}, node_id = NULL",
        "stop_reason = StopReason.CANCEL, stop_grace_ms = 0",
        f"{RUNNING}, stop_reason = StopReason.CANCEL",
        f"{RUNNING}, stop_reason = -1, stop_grace_ms = 0",
        "superseded_by = zeroblob(16)",
        f"{RUNNING}, superseded_by = zeroblob(15)",
        "subject_key = 's'",
        "generation = 1",
        "priority = 101",
        "priority = -101",
        "priority = 'high'",
        "grace_ms = 60001",
        "max_attempts = -1",
        "backoff_factor = 0",
        "timeout_ms = 0",
        "attempts = 1",
        "claim_no = -1",
        "queue = ''",
        "queue = printf('%065d', 0)",
        "job_type = ''",
        "job_id = zeroblob(15)",
        "on_interrupt = 2",
        "retry_on_crash = 2",
        "payload = NULL",
        "aside = 1",
        "aside = 2, execution_mode = ExecutionMode.IN_PROCESS",
        f"{RUNNING}, aside = 1, execution_mode = ExecutionMode.IN_PROCESS",
        f"{SKIPPED}, stop_reason = StopReason.CANCEL, stop_grace_ms = 0",
    ],
)
def test_the_schema_refuses(db: apsw.Connection, change: str) -> None:
    insert(db)
    with pytest.raises(apsw.ConstraintError):
        db.execute(encode(f"UPDATE jobs SET {change}"))


def test_two_jobs_of_a_subject_cannot_run(db: apsw.Connection) -> None:
    for seq in (1, 2):
        insert(db, seq, subject_key=None)
    db.execute("UPDATE jobs SET subject_key = 's', generation = seq")
    db.execute(f"UPDATE jobs SET {encode(RUNNING)} WHERE seq = 1")
    with pytest.raises(apsw.ConstraintError, match="UNIQUE"):
        db.execute(f"UPDATE jobs SET {encode(RUNNING)} WHERE seq = 2")


def test_attempts_go_with_their_job(db: apsw.Connection) -> None:
    insert(db)
    db.execute("INSERT INTO attempts (seq, claim_no, started_at, finished_at, end_cause) VALUES (1, 1, 1, 1, 'signal')")
    db.execute("DELETE FROM jobs")
    assert db.execute("SELECT count(*) FROM attempts").fetchall() == [(0,)]


# --- plans ---


def plan(db: apsw.Connection, sql: str) -> list[str]:
    """Bound to nothing: the plan must not hang on the values."""
    names = set(re.findall(r":(\w+)", sql))
    return [str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", dict.fromkeys(names))]


LANE = "job_type=? AND subject_key=? AND execution_mode=? AND queue=?"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ready_jobs", "SEARCH jobs USING INDEX jobs_ready (execution_mode=? AND queue=? AND priority>?)"),
        ("claim_job", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("finish_job", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("succeed_tasks", "SEARCH jobs USING INDEX jobs_id (job_id=?)"),
        ("record_progress", "SEARCH jobs USING INDEX jobs_id (job_id=?)"),
        ("set_aside", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("bring_back", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("bring_back", "SEARCH jobs USING COVERING INDEX jobs_aside (job_type=?)"),
        ("tasks_aside", "SEARCH jobs USING COVERING INDEX jobs_aside (job_type>?)"),
        ("raise_stop", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("promote_due", "SEARCH jobs USING COVERING INDEX jobs_due (run_at<?)"),
        ("oldest_ready", "SEARCH jobs USING INDEX jobs_ready (execution_mode=? AND queue=? AND priority=?)"),
        ("next_due", "SEARCH jobs USING COVERING INDEX jobs_due (run_at>?)"),
        ("free_lanes", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("free_lanes", f"SEARCH jobs USING COVERING INDEX jobs_lane ({LANE})"),
        ("end_waiting", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("mark_superseded", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("overdue_jobs", "SEARCH jobs USING INDEX jobs_expiry (expires_at<?)"),
        ("next_expiry", "SEARCH jobs USING INDEX jobs_expiry (expires_at>?)"),
        ("live_subjects", "SEARCH jobs EXISTS USING INDEX jobs_subject (job_type=? AND subject_key=?)"),
        ("newest_of_subject", "SEARCH jobs USING INDEX jobs_subject (job_type=? AND subject_key=?)"),
        ("finished_jobs", "SEARCH jobs USING INDEX jobs_finished (finished_at>?)"),
        ("finished_jobs", "SEARCH child USING INDEX jobs_parent (parent_job_id=?)"),
        ("finished_jobs", "SEARCH copy USING INDEX jobs_retry (retry_of=?)"),
        ("delete_finished", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("delete_finished", "SEARCH attempts USING PRIMARY KEY (seq=?)"),
        ("leave_subject", "SEARCH subjects USING PRIMARY KEY (job_type=? AND subject_key=?)"),
        ("delete_subjects", "SCAN subjects USING COVERING INDEX subjects_unused"),
        ("running_claims", "SEARCH jobs USING INDEX jobs_state (state=?)"),
        ("first_from", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid>?)"),
        ("running_jobs", "SEARCH jobs USING INDEX jobs_state (state=?)"),
        ("find_by_keys", "SEARCH jobs USING INDEX jobs_idempotency_key (idempotency_key=?)"),
        ("get_job", "SEARCH jobs USING INDEX jobs_id (job_id=?)"),
        ("get_jobs", "SEARCH jobs USING INDEX jobs_id (job_id=?)"),
        ("record_process", "SEARCH jobs USING INDEX jobs_id (job_id=?)"),
        ("last_seq", "SEARCH jobs"),
        ("attempts_of", "SEARCH attempts USING PRIMARY KEY (seq=?)"),
    ],
)
def test_statements_use_their_index(db: apsw.Connection, name: str, expected: str) -> None:
    steps = plan(db, query(name))
    assert expected in steps
    assert_no_scan(steps)


@pytest.mark.parametrize(
    ("where", "index"),
    [
        (JobFilter(), "INTEGER PRIMARY KEY"),
        (JobFilter(created_after=1, id_suffix="ab", subject_key_prefix="s"), "INTEGER PRIMARY KEY"),
        (JobFilter(job_type="t", created_after=1), "INDEX jobs_type (job_type=?"),
        (JobFilter(job_type="t", state=list(State)), "INDEX jobs_type (job_type=?"),
        (JobFilter(job_type="t", state=[State.FAILED], not_retried=True), "INDEX jobs_state (state=?"),
        (JobFilter(state=[State.FAILED]), "INDEX jobs_state (state=?"),
        (JobFilter(state=list(FINAL), queue=["q"]), "INDEX jobs_state (state=?"),
        (JobFilter(queue=["q", "r"]), "INDEX jobs_queue (queue=?"),
        (JobFilter(tag="t", state=[State.DONE]), "INDEX jobs_tag (tag=?"),
        (JobFilter(chain_group_id="g", queue=["q"]), "INDEX jobs_group (chain_group_id=?"),
    ],
)
@pytest.mark.parametrize("newest_first", [True, False])
def test_listings_are_read_in_order_from_an_index(
    db: apsw.Connection, where: JobFilter, index: str, newest_first: bool
) -> None:
    sql, _ = listing_statement(where, newest_first)
    steps = plan(db, sql)
    assert any(step.startswith("SEARCH jobs USING") and index in step for step in steps)
    assert_no_scan(steps)


@pytest.mark.parametrize("selector", ["job_id", "tag", "chain_group_id"])
@pytest.mark.parametrize("name", ["count_of", "waiting_of", "running_of"])
def test_a_stop_visits_only_what_it_names(db: apsw.Connection, name: str, selector: str) -> None:
    assert_no_scan(plan(db, query(name).format(selector=f"{selector} = :value")))


def test_superseding_visits_only_what_lives_of_the_subjects(db: apsw.Connection) -> None:
    steps = plan(db, query("live_of_subjects"))
    assert "SEARCH jobs USING INDEX jobs_subject (job_type=? AND subject_key=?)" in steps
    assert not any(step.startswith("SCAN jobs") for step in steps)


def assert_no_scan(steps: list[str]) -> None:
    for step in steps:
        assert "SCAN jobs" not in step
        assert "TEMP B-TREE" not in step


def vm_steps(db: apsw.Connection, sql: str, values: dict[str, Any]) -> int:
    """Of SQLite's machine, for one execution that finds one row."""
    seen: list[int] = []
    db.trace_v2(apsw.SQLITE_TRACE_PROFILE, lambda event: seen.append(event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]))
    assert len(db.execute(sql, values).fetchall()) == 1
    db.trace_v2(0)
    return sum(seen)


def ready(**other: Any) -> dict[str, Any]:
    values = {
        "mode": MODES.code(ExecutionMode.SUBPROCESS),
        "queue": "default",
        "min_priority": -100,
        "now": NOW,
        "limit": 1,
    }
    return values | other


def test_a_claim_costs_the_same_in_a_long_queue(db: apsw.Connection) -> None:
    """In steps, not in time."""
    claim = {"picks": "[[50, 0]]", "now": 1, "node_id": "n", "claim": "{}"}
    steps: list[int] = []
    for first in (1, 101):
        rows = [NewRow(new_job(), seq, State.QUEUED) for seq in range(first, 101 if first == 1 else 20_001)]
        with db:
            insert_rows(db, rows)
        db.execute("BEGIN")
        steps.append(
            sum(vm_steps(db, query(name), values) for name, values in (("ready_jobs", ready()), ("claim_job", claim)))
        )
        db.execute("ROLLBACK")
    assert steps[0] == steps[1] > 0


def test_a_claim_of_tasks_costs_the_same_however_many_wait_or_are_set_aside(db: apsw.Connection) -> None:
    """In steps, not in time. What is set aside stands before what can run."""
    facts = ClaimFacts(daemon_epoch=1, boot_id="b", attempts_id="a", nonce="n", worker="w")
    takers = [
        Taker(facts=facts, tasks=frozenset({"t"}), limit=1),
        Taker(facts=facts, tasks=frozenset({"t"}), limit=31, ahead=True),
    ]
    request = TaskClaim(queues={"default": 2}, takers=takers, offered=frozenset({"t"}), rooms={}, now=NOW, node_id="n")
    steps: list[int] = []
    db.trace_v2(
        apsw.SQLITE_TRACE_PROFILE, lambda event: steps.append(event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"])
    )
    totals = []
    first = 1
    for last in (200, 20_000):
        for seq in range(first, last):
            name, priority = ("t", 0) if seq % 2 else ("nobody offers it", 9)
            job = new_job(
                job_type=name,
                execution_mode=ExecutionMode.IN_PROCESS,
                on_interrupt=OnInterrupt.REQUEUE,
                priority=priority,
            )
            insert_rows(db, [NewRow(job, seq, State.QUEUED)])
        db.execute("UPDATE jobs SET aside = 1 WHERE job_type <> 't'")
        first = last
        db.execute("BEGIN")
        steps.clear()
        step = claim_tasks(Tick(db, synced=True), request)
        totals.append(sum(steps))
        assert [len(jobs) for jobs in step.claimed.jobs] == [1, 31]
        assert step.claimed.unserved == {"t"}
        db.execute("ROLLBACK")
    assert totals[0] == totals[1] > 0


def insert_lane(db: apsw.Connection, numbers: range) -> None:
    jobs = ((seq, new_job(subject_key="s")) for seq in numbers)
    rows = [NewRow(job, seq, State.QUEUED, generation=seq) for seq, job in jobs]
    with db:
        insert_rows(db, rows)


def test_a_claim_passes_a_long_lane_that_cannot_go_on(db: apsw.Connection) -> None:
    """100,000 jobs of a subject wait behind a running one, and before another job."""
    insert_lane(db, range(1, 2))
    db.execute(f"UPDATE jobs SET {encode(RUNNING)} WHERE seq = 1")
    insert(db, 1_000_000)
    steps = [vm_steps(db, query("ready_jobs"), ready())]
    for numbers in (range(2, 3), range(3, 100_002)):
        insert_lane(db, numbers)
        steps.append(vm_steps(db, query("ready_jobs"), ready()))
    assert steps[1] == steps[2]  # one blocked head, whatever is behind it
    assert steps[2] < 3 * steps[0]

    db.execute(f"UPDATE jobs SET {encode(DONE)} WHERE seq = 1")  # the running one has ended
    assert [row[1] for row in db.execute(query("ready_jobs"), ready(limit=9))] == [2, 1_000_000]
    db.execute(f"UPDATE jobs SET {encode(RUNNING)} WHERE seq = 2")
    lanes = {"lanes": '[["command", "s", 1, "default"]]'}
    assert vm_steps(db, query("free_lanes"), lanes) < 300
    assert db.execute(encode("SELECT seq FROM jobs WHERE state = State.QUEUED AND behind = 0")).fetchall() == [
        (3,),
        (1_000_000,),
    ]


def test_jobs_of_a_lane_that_become_due_together_stand_in_a_row(db: apsw.Connection) -> None:
    """Only one of them is seen by claims, or a long lane could be in their way after all."""
    with db:
        for seq in range(1, 501):
            insert_rows(db, [NewRow(new_job(subject_key="s", run_at=NOW), seq, State.SCHEDULED, generation=seq)])
    db.execute(query("promote_due"), {"now": NOW, "limit": 500}).fetchall()
    assert db.execute(encode("SELECT count(*), sum(behind = 0) FROM jobs WHERE state = State.QUEUED")).fetchall() == [
        (500, 1)
    ]


def test_a_claim_reads_no_row_of_jobs_whose_time_is_over(db: apsw.Connection) -> None:
    """Until the timer has come to them they are passed in the index."""
    late = [NewRow(new_job(deadline=NOW, payload="x" * 3000), seq, State.QUEUED) for seq in range(1, 2001)]
    with db:
        insert_rows(db, late)
    insert(db, 5000)
    db.execute("PRAGMA cache_size = 0")
    before = db.status(apsw.SQLITE_DBSTATUS_CACHE_MISS)[0]
    assert len(db.execute(query("ready_jobs"), ready()).fetchall()) == 1
    assert db.status(apsw.SQLITE_DBSTATUS_CACHE_MISS)[0] - before < 100


@pytest.mark.parametrize("name", ["overdue_jobs", "next_expiry", "next_due", "promote_due", "finished_jobs"])
def test_timers_and_the_purge_cost_the_same_in_a_long_queue(db: apsw.Connection, name: str) -> None:
    """In steps: one job is over its time, due and finished each, however many others wait or have ended."""
    values = {"now": NOW, "limit": 1, "after": -1, "after_seq": 0}
    steps: list[int] = []
    number = 1
    for count in (10, 5_000):
        for fields, state in (
            ({"deadline": NOW + count, "ttl_ms": 1}, State.QUEUED),
            ({"run_at": NOW + 9}, State.SCHEDULED),
            ({}, State.QUEUED),
        ):
            with db:
                rows = [NewRow(new_job(**fields), number + n, state) for n in range(count)]
                insert_rows(db, rows)
            number += count
        db.execute(f"UPDATE jobs SET {encode(DONE)} WHERE seq >= {number - count}")
        db.execute("BEGIN")
        insert(db, number, deadline=NOW)
        insert_rows(db, [NewRow(new_job(run_at=NOW), number + 1, State.SCHEDULED)])
        steps.append(vm_steps(db, query(name), {k: v for k, v in values.items() if f":{k}" in query(name)}))
        db.execute("ROLLBACK")
    assert steps[0] == steps[1] > 0
