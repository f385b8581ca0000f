"""The producer of benchmarks/tasks.py, a process of its own: python -m benchmarks.task_producer KIND COUNT

Prints one JSON object: when it began, the seconds that it took, and the median seconds of a call.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks.peers.produce import send_stamps
from benchmarks.task_app import async_noop, nap, noop, stamp

BATCH = 100
AT_ONCE = 50
NAP_S = 8.0


def main(kind: str, count: int) -> None:
    produce = _KINDS[kind]
    noop.using(queue="unused").enqueue()  # connect before the clock runs
    began = time.monotonic()
    calls = produce(count)
    ended = time.monotonic()
    print(json.dumps({"began": began, "seconds": ended - began, "call_s": statistics.median(calls or [0])}))


def _times(call: Callable[[], object], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


def _gathered(count: int) -> list[float]:
    async def produce() -> None:
        for _ in range(count // AT_ONCE):
            await asyncio.gather(*(noop.aenqueue() for _ in range(AT_ONCE)))

    asyncio.run(produce())
    return []


def _stamps(count: int) -> list[float]:
    send_stamps(stamp.enqueue, count)
    return []


_KINDS: dict[str, Callable[[int], list[float]]] = {
    "singles": lambda count: _times(noop.enqueue, count),
    "batches": lambda count: _times(lambda: noop.enqueue_many([()] * BATCH), count // BATCH),
    "async_batches": lambda count: _times(lambda: async_noop.enqueue_many([()] * BATCH), count // BATCH),
    "gathered": _gathered,
    "naps": lambda count: _times(lambda: nap.enqueue_many([(NAP_S,)] * count), 1),
    "stamps": _stamps,
}

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
