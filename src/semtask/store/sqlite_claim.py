"""Claiming: the statement that gives jobs away, and which commands are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from semtask.model.job import ClaimFacts, ExecutionMode, Job, OnInterrupt
from semtask.model.state import State
from semtask.store.base import Change
from semtask.store.codes import MODES
from semtask.store.requests import ClaimRequest
from semtask.store.sql import query
from semtask.store.sqlite_damage import UNREADABLE, Damage, quarantine
from semtask.store.sqlite_rows import Row, fetch, id_text, to_claimed_job, to_job, to_json
from semtask.store.sqlite_stop import free_lanes
from semtask.store.writer import Tick


def claim(tick: Tick, request: ClaimRequest) -> list[Job]:
    free = dict(request.queues)
    claimed: list[Job] = []
    looking = True
    while looking and len(claimed) < request.limit:
        before = len(tick.changes)
        looking = False
        for candidate in _candidates(tick, request, free, request.limit - len(claimed)):
            job = _claim_one(tick, request, candidate)
            if job is None:
                # Its subject began to run in this very round, or its row was damaged: look again, or a worse job would
                # overtake a better one.
                looking = len(tick.changes) > before
                break
            free[job.queue] -= 1
            claimed.append(job)
    free_lanes_behind(tick, claimed)
    return claimed


def free_lanes_behind(tick: Tick, claimed: Iterable[Job]) -> None:
    """These were the heads of their lanes."""
    lanes = [
        (j.job_type, j.subject_key, MODES.code(j.execution_mode), j.queue) for j in claimed if j.subject_key is not None
    ]
    free_lanes(tick, lanes)


def _candidates(tick: Tick, request: ClaimRequest, free: Mapping[str, int], limit: int) -> list[Row]:
    """The best `limit` jobs over all the queues, best first."""
    found: list[Row] = []
    for queue, slots in free.items():
        if slots > 0:
            where = {
                "mode": MODES.code(request.mode),
                "queue": queue,
                "min_priority": request.min_priority,
                "now": request.now,
                "limit": min(slots, limit),
            }
            found += fetch(tick.db, query("ready_jobs"), where)
    found.sort()
    return found[:limit]


def _claim_one(tick: Tick, request: ClaimRequest, candidate: Row) -> Job | None:
    facts = request.facts(id_text(candidate[3]), candidate[4] + 1)
    claimed = claim_rows(tick, [candidate], now=request.now, node_id=request.node_id, facts=facts)
    if not claimed:
        return None
    [job] = claimed
    if job.execution_mode is ExecutionMode.SUBPROCESS or job.on_interrupt is OnInterrupt.FAIL:
        tick.require_sync()  # a claim that a power cut forgets would run twice
    return job


def claim_rows(tick: Tick, candidates: Sequence[Row], *, now: int, node_id: str, facts: ClaimFacts) -> list[Job]:
    """Claim rows of ready_jobs.sql, in their order. What cannot be decoded goes into quarantine instead."""
    if not candidates:
        return []
    picks = [(seq, claim_no) for _, seq, _, _, claim_no, *_ in candidates]
    values = {"now": now, "node_id": node_id, "claim": _stored(tick, facts), "picks": to_json(picks)}
    try:
        rows = fetch(tick.db, query("claim_job"), values)
        jobs = {row[0]: to_claimed_job(row, now, node_id, facts) for row in rows}
    except UNREADABLE:
        jobs = {job.seq: job for pick in picks if (job := _read_back(tick, *pick, now=now))}
    claimed = [job for seq, _ in picks if (job := jobs.get(seq))]
    tick.changes += [_claimed(job) for job in claimed]
    return claimed


def _stored(tick: Tick, facts: ClaimFacts) -> str | int:
    """What is written as `claim`: the jobs of one worker share it."""
    text = to_json(facts)
    if facts.worker is None:
        return text
    found = fetch(tick.db, query("find_claim"), {"facts": text}) or fetch(
        tick.db, query("insert_claim"), {"facts": text}
    )
    return int(found[0][0])


def _read_back(tick: Tick, seq: int, old_claim_no: int, *, now: int) -> Job | None:
    """One of a claim in which a row could not be decoded: all of it is written, only the answer is lost."""
    try:
        job = to_job(fetch(tick.db, query("get_row"), {"seq": seq})[0])
    except UNREADABLE as error:
        quarantine(tick, Damage(seq, old_claim_no + 1, str(error)), now=now, before=State.QUEUED)
        return None
    return job if (job.state, job.claim_no) == (State.RUNNING, old_claim_no + 1) else None


def _claimed(job: Job) -> Change:
    return Change(
        job_id=job.job_id,
        queue=job.queue,
        job_type=job.job_type,
        execution_mode=job.execution_mode,
        before=State.QUEUED,
        after=State.RUNNING,
        claim_no=job.claim_no,
        subject_key=job.subject_key,
    )
