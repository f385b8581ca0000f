"""The producer of a peer, a process of its own: python -m benchmarks.peers.produce APP noops|stamps COUNT

Prints one JSON object: when it began, and the seconds that the enqueues took.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers.probe import FOLDER

PAUSE_S = 0.005  # between two jobs whose start is timed, so that everyone is idle again
LIMIT_S = 6.0


def main(name: str, kind: str, count: int) -> None:
    app = importlib.import_module(f"benchmarks.peers.apps.{name}")
    with asyncio.Runner() as runner:
        if hasattr(app, "open_producer"):  # connect before the clock runs
            runner.run(app.open_producer())
        began = time.monotonic()
        if kind == "noops":
            runner.run(_noops(app.send_noop, count))
        else:
            send_stamps(lambda sent: _finish(runner, app.send_stamp(sent)), count)
        print(json.dumps({"began": began, "seconds": time.monotonic() - began}))


async def _noops(send: Callable[[], Any], count: int) -> None:
    if inspect.iscoroutinefunction(send):
        for _ in range(count):
            await send()
    else:
        for _ in range(count):
            send()


def _finish(runner: asyncio.Runner, sent: Any) -> None:
    if inspect.iscoroutine(sent):
        runner.run(sent)


def send_stamps(send: Callable[[float], object], count: int) -> None:
    """One at a time: the next one is sent when the last one has begun."""
    path = os.path.join(os.environ[FOLDER], "starts")
    began = time.monotonic()
    size = _size(path)
    for _ in range(count):
        time.sleep(PAUSE_S)
        send(time.monotonic())
        while (now := _size(path)) == size:
            time.sleep(0.001)
            if time.monotonic() - began > 2 * LIMIT_S:
                sys.exit("a job did not begin")
        size = now
        if time.monotonic() - began > LIMIT_S:
            return


def _size(path: str) -> int:
    return os.stat(path).st_size if os.path.exists(path) else 0


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
