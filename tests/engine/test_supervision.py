"""Services that crash: when they are started again, and when that ends."""

from __future__ import annotations

import asyncio
from typing import Any

from semtask.engine.supervision import ServiceFailed, supervised
from tests.impatience import ImpatientLoop


def test_a_service_is_started_again_after_1_2_4_8_and_16_s_and_given_up_at_its_sixth_crash() -> None:
    loop = ImpatientLoop("_set_result_unless_cancelled")
    given_up: list[Any] = []
    starts = 0

    async def service() -> None:
        nonlocal starts
        starts += 1
        raise RuntimeError("broken")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: given_up.append(context["exception"]))
        await supervised("the service", service)

    loop.run(main())
    assert loop.pauses == [1, 2, 4, 8, 16]
    assert starts == 6
    (failed,) = given_up
    assert isinstance(failed, ServiceFailed)
    assert str(failed) == "the service failed 6 times in a row, the last time: RuntimeError('broken')"
