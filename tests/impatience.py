"""An event loop for which a kind of pause takes no time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class ImpatientLoop(asyncio.SelectorEventLoop):
    """Ends each pause whose timer calls a function of this name immediately, and notes it in `pauses` (seconds).

    asyncio.sleep calls `_set_result_unless_cancelled`, asyncio.timeout `_on_timeout`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.pauses: list[int] = []

    def call_at(  # type: ignore[override] # the types of callbacks do not matter here
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        if getattr(callback, "__name__", "") == self._name:
            self.pauses.append(round(when - self.time()))
            when = self.time()
        return super().call_at(when, callback, *args, context=context)

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=lambda: self) as runner:
            runner.run(main)
