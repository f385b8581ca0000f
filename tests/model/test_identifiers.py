from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from semtask.model.identifiers import JobIds

CLOCKS = st.lists(st.integers(0, (1 << 48) - 2), min_size=1, max_size=50)
BYTES = st.sampled_from([b"\x00", b"\xff", b"\x7f", b"\xa5"])


@given(CLOCKS, BYTES)
def test_ids_are_version_7_and_increase_whatever_the_clock_does(clock: list[int], byte: bytes) -> None:
    times = iter(clock)
    maker = JobIds(lambda: next(times), lambda count: byte * count)
    made = [maker.new() for _ in clock]
    assert made == sorted(set(made))
    for text in made:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


@given(CLOCKS)
def test_the_time_of_an_id_is_never_behind_the_clock(clock: list[int]) -> None:
    times = iter(clock)
    maker = JobIds(lambda: next(times), bytes)
    newest = 0
    for now in clock:
        newest = max(newest, now)
        assert uuid.UUID(maker.new()).int >> 80 == newest


def test_a_clock_that_stands_still_with_the_largest_steps_goes_on_into_the_next_millisecond() -> None:
    maker = JobIds(lambda: 1000, lambda count: b"\xff" * count)
    maker._tail = 0
    made = []
    for _ in range(3):
        made.append(maker.new())
        maker._tail = (1 << 74) - 1  # as after a very long time within the millisecond
    assert [uuid.UUID(text).int >> 80 for text in made] == [1000, 1001, 1002]
    assert made == sorted(made)
