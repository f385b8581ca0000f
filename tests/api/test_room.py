"""Who is closed for a newcomer."""

from __future__ import annotations

from typing import Any

import pytest

from semtask.api.room import Room
from semtask.api.site import Standing

MINE, CROWD, NEW = 1, 2, 3


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def room(clock: Clock) -> Any:
    return Room(16, clock)


def enter(room: Any, clock: Clock, name: Any, standing: Standing, *, pid: int = MINE, age_s: float = 10) -> None:
    """A connection is told by its name here: a room does nothing with it but to remember it."""
    clock.now -= age_s
    room.enter(name, pid)
    room.stands(name, standing)
    clock.now += age_s


def test_what_is_missed_least_goes_first(room: Any, clock: Clock) -> None:
    for standing in reversed(Standing):
        enter(room, clock, standing.value, standing)
    gone = []
    while (victim := room.least_missed(NEW)) is not None:
        gone.append(victim)
        room.leave(victim)
    assert gone == ["idle", "receiving", "stalled", "queued", "waiting"]
    assert list(room) == ["working"]


def test_of_its_kind_the_oldest_goes(room: Any, clock: Clock) -> None:
    enter(room, clock, "old", Standing.IDLE, age_s=20)
    enter(room, clock, "older", Standing.IDLE, age_s=10)
    room.stands("old", Standing.WORKING)
    room.stands("old", Standing.IDLE)
    assert room.least_missed(NEW) == "older"


def test_a_newcomer_is_not_closed_before_its_request_had_time_to_come(room: Any, clock: Clock) -> None:
    enter(room, clock, "slow", Standing.RECEIVING, age_s=2)
    enter(room, clock, "new", Standing.IDLE, age_s=0.1)
    assert room.least_missed(NEW) == "slow"


def test_among_newcomers_the_first_goes(room: Any, clock: Clock) -> None:
    enter(room, clock, "first", Standing.RECEIVING, age_s=0.2)
    enter(room, clock, "second", Standing.IDLE, age_s=0.1)
    assert room.least_missed(NEW) == "first"


def test_a_crowd_makes_room_among_its_own(room: Any, clock: Clock) -> None:
    enter(room, clock, "mine", Standing.IDLE, age_s=50)
    for number in range(3):
        enter(room, clock, f"one of many {number}", Standing.WAITING, pid=CROWD, age_s=10 - number)
    assert room.least_missed(CROWD) == "one of many 0"
    assert room.least_missed(NEW) == "mine"


def test_a_crowd_that_is_at_work_makes_room_among_others(room: Any, clock: Clock) -> None:
    enter(room, clock, "mine", Standing.IDLE)
    for number in range(3):
        enter(room, clock, f"one of many {number}", Standing.WORKING, pid=CROWD)
    assert room.least_missed(CROWD) == "mine"


def test_who_has_left_is_forgotten(room: Any, clock: Clock) -> None:
    enter(room, clock, "mine", Standing.IDLE)
    room.leave("mine")
    room.leave("mine")
    room.stands("mine", Standing.IDLE)
    assert (len(room), room.least_missed(MINE), room.overfull) == (0, None, False)
