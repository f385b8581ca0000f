"""The app whose tasks benchmarks/tasks.py measures. They do what those of the peers do."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from benchmarks.peers import probe
from semtask import Semantica

app = Semantica()


@app.task
def noop() -> None:
    probe.tick()


@app.task
async def async_noop() -> None:
    probe.tick()


@app.task
def stamp(sent: float) -> None:
    probe.mark("starts", sent)


@app.task
async def nap(seconds: float) -> None:
    probe.mark("naps.began")
    await asyncio.sleep(seconds)
    probe.mark("naps.ended")


@app.task
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@app.task
def crash(seconds: float) -> None:
    """Run long enough that a spare is warm, then die of a segmentation fault."""
    time.sleep(seconds)
    probe.mark("crashed")
    os.kill(os.getpid(), signal.SIGSEGV)


@app.task
def after_crash() -> None:
    probe.mark("replaced")
