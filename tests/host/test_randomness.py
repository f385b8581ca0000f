from __future__ import annotations

from semtask.host.randomness import RandomPool


def test_every_byte_is_handed_out_once_and_in_the_number_asked_for() -> None:
    draw = RandomPool()
    pieces = [draw(count) for _ in range(2000) for count in (10, 4)]
    assert {len(piece) for piece in pieces} == {10, 4}
    assert len({piece for piece in pieces if len(piece) == 10}) == 2000
    assert len(draw(10_000)) == 10_000
    assert draw(10) != draw(10)
