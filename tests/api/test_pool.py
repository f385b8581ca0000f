"""Who is closed for a newcomer."""

from __future__ import annotations

from typing import Any

import pytest

from semtask.api.connection import ConnectionState
from semtask.api.pool import ConnectionPool

MINE, CROWD, NEW = 1, 2, 3


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(clock: Clock) -> Any:
    return ConnectionPool(16, clock)


def enter(pool: Any, clock: Clock, name: Any, state: ConnectionState, *, pid: int = MINE, age_s: float = 10) -> None:
    """A connection is told by its name here: a pool does nothing with it but to remember it."""
    clock.now -= age_s
    pool.enter(name, pid)
    pool.set_state(name, state)
    clock.now += age_s


def test_what_is_missed_least_goes_first(pool: Any, clock: Clock) -> None:
    for state in reversed(ConnectionState):
        enter(pool, clock, state.value, state)
    gone = []
    while (victim := pool.least_missed(NEW)) is not None:
        gone.append(victim)
        pool.leave(victim)
    assert gone == ["idle", "receiving", "stalled", "queued", "waiting", "streaming"]
    assert list(pool) == ["working"]


def test_of_its_kind_the_oldest_goes(pool: Any, clock: Clock) -> None:
    enter(pool, clock, "old", ConnectionState.IDLE, age_s=20)
    enter(pool, clock, "older", ConnectionState.IDLE, age_s=10)
    pool.set_state("old", ConnectionState.WORKING)
    pool.set_state("old", ConnectionState.IDLE)
    assert pool.least_missed(NEW) == "older"


def test_a_newcomer_is_not_closed_before_its_request_had_time_to_come(pool: Any, clock: Clock) -> None:
    enter(pool, clock, "slow", ConnectionState.RECEIVING, age_s=2)
    enter(pool, clock, "new", ConnectionState.IDLE, age_s=0.1)
    assert pool.least_missed(NEW) == "slow"


def test_among_newcomers_the_first_goes(pool: Any, clock: Clock) -> None:
    enter(pool, clock, "first", ConnectionState.RECEIVING, age_s=0.2)
    enter(pool, clock, "second", ConnectionState.IDLE, age_s=0.1)
    assert pool.least_missed(NEW) == "first"


def test_a_crowd_makes_room_among_its_own(pool: Any, clock: Clock) -> None:
    enter(pool, clock, "mine", ConnectionState.IDLE, age_s=50)
    for number in range(3):
        enter(pool, clock, f"one of many {number}", ConnectionState.WAITING, pid=CROWD, age_s=10 - number)
    assert pool.least_missed(CROWD) == "one of many 0"
    assert pool.least_missed(NEW) == "mine"


def test_a_crowd_that_is_at_work_makes_room_among_others(pool: Any, clock: Clock) -> None:
    enter(pool, clock, "mine", ConnectionState.IDLE)
    for number in range(3):
        enter(pool, clock, f"one of many {number}", ConnectionState.WORKING, pid=CROWD)
    assert pool.least_missed(CROWD) == "mine"


def test_who_has_left_is_forgotten(pool: Any, clock: Clock) -> None:
    enter(pool, clock, "mine", ConnectionState.IDLE)
    pool.leave("mine")
    pool.leave("mine")
    pool.set_state("mine", ConnectionState.IDLE)
    assert (len(pool), pool.least_missed(MINE), pool.overfull) == (0, None, False)


def test_an_old_stream_stays_while_there_is_anything_else(pool: Any, clock: Clock) -> None:
    enter(pool, clock, "stream", ConnectionState.STREAMING, age_s=1000)
    enter(pool, clock, "new", ConnectionState.IDLE, age_s=0.1)
    assert pool.least_missed(NEW) == "new"
    pool.leave("new")
    assert pool.least_missed(NEW) == "stream"
