"""What keeps jobs from being claimed: how long its pauses are."""

from __future__ import annotations

import asyncio

from semtask.engine.holds import Holds
from tests.impatience import ImpatientLoop


def test_a_shortage_pauses_for_1_s_doubling_to_30_s_until_a_process_was_started() -> None:
    loop = ImpatientLoop("_end_pause")

    async def main() -> None:
        resumed = asyncio.Event()
        holds = Holds(resumed.set)
        holds.open()

        async def shortage() -> None:
            resumed.clear()
            holds.back_off("no descriptors")
            assert holds.everything
            assert holds.shortage == "no_room"
            await resumed.wait()
            assert not holds.everything

        for _ in range(7):
            await shortage()
        holds.room_again()
        await shortage()

    loop.run(main())
    assert loop.pauses == [1, 2, 4, 8, 16, 30, 30, 1]
