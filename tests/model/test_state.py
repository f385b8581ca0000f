from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semtask.model.state import (
    FINAL,
    LIVE,
    RANK,
    TRANSITIONS,
    WAITING,
    EndCause,
    Event,
    State,
    StopReason,
    may_raise,
)

# Written out a second time on purpose: a change of the table must be a decision.
EXPECTED = """
            SCHEDULED         QUEUED            RUNNING
become_due  QUEUED            -                 -
claim       -                 RUNNING           -
succeed     -                 -                 DONE
fail        -                 -                 FAILED
retry       -                 -                 SCHEDULED
requeue     -                 -                 QUEUED
give_back   -                 -                 QUEUED
cancel      CANCELLED         CANCELLED         CANCELLED
supersede   SUPERSEDED        SUPERSEDED        SUPERSEDED
expire      -                 SKIPPED_TTL       -
miss_deadline SKIPPED_DEADLINE SKIPPED_DEADLINE -
"""


def expected() -> dict[tuple[State, Event], State]:
    head, *lines = EXPECTED.strip().splitlines()
    table = {}
    for line in lines:
        event, *targets = line.split()
        for state, target in zip(head.split(), targets, strict=True):
            if target != "-":
                table[State(state), Event(event)] = State(target)
    return table


def test_the_groups_divide_the_states() -> None:
    assert set(State) == LIVE | FINAL
    assert not LIVE & FINAL
    assert LIVE - {State.RUNNING} == WAITING


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair(state: State, event: Event) -> None:
    assert TRANSITIONS.get((state, event)) is expected().get((state, event))
    if state in FINAL:
        assert (state, event) not in TRANSITIONS


def test_every_state_is_reached_and_every_live_one_can_end() -> None:
    assert set(TRANSITIONS.values()) == set(State)
    for state in LIVE:
        reachable, fresh = set(), {state}
        while fresh:
            reachable |= fresh
            fresh = {to for (frm, _), to in TRANSITIONS.items() if frm in fresh} - reachable
        assert reachable >= {State.CANCELLED, State.SUPERSEDED}


def test_skipped_jobs_never_ran() -> None:
    for (state, _), target in TRANSITIONS.items():
        if target in {State.SKIPPED_TTL, State.SKIPPED_DEADLINE}:
            assert state in WAITING


def test_the_ranks_of_the_reasons() -> None:
    order = [
        {StopReason.INTERRUPTED, StopReason.SHUTDOWN},
        {StopReason.TIMEOUT, StopReason.LOG_LIMIT},
        {StopReason.DEADLINE},
        {StopReason.SUPERSEDED},
        {StopReason.CANCEL},
    ]
    assert [{r for r in StopReason if RANK[r] == rank} for rank in sorted(set(RANK.values()))] == order


@given(st.lists(st.sampled_from(StopReason), min_size=1))
def test_the_highest_reason_stays_and_among_equals_the_first(wanted: list[StopReason]) -> None:
    present: StopReason | None = None
    for reason in wanted:
        if may_raise(present, reason):
            assert present is None or RANK[reason] > RANK[present]
            present = reason
    assert present is max(wanted, key=lambda reason: RANK[reason])  # max gives the first of equals


def test_wire_names_are_the_documented_ones() -> None:
    """They stand in databases and in clients: never rename one."""
    assert set(State) == {
        "SCHEDULED", "QUEUED", "RUNNING",
        "DONE", "FAILED", "CANCELLED", "SUPERSEDED", "SKIPPED_TTL", "SKIPPED_DEADLINE",
    }  # fmt: skip
    assert set(EndCause) == {
        "success", "exception", "exit_code", "signal", "oom", "timeout", "deadline", "ttl", "cancelled", "superseded",
        "worker_crash", "interrupted", "quarantined", "spawn_failed", "bad_payload", "dependency_failed", "log_limit",
    }  # fmt: skip
