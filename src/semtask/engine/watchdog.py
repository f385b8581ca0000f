"""Notices when the event loop does not turn, and says where it is stuck: nothing else of the daemon could."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NamedTuple

log = logging.getLogger("semtask.watchdog")

LIMIT_S = 1.0
_INTERVAL_S = 0.5
_SLICE_S = 0.25


class Stalled(Exception):
    """The event loop does not turn."""


class _Moment(NamedTuple):
    elapsed: float
    cpu: float

    @classmethod
    def now(cls) -> _Moment:
        # Neither counts while the machine sleeps.
        return cls(time.monotonic(), time.process_time())


class LoopWatchdog:
    """A thread that asks the loop for a sign every half second. A turn that takes more than LIMIT_S is a stall: all
    stacks go to the log, once, and `stalled()` is called on the loop when it turns again.

    Time in which this process did not run at all (stopped, or a frozen machine) is no fault of the loop. A stall in C
    code that keeps the interpreter to itself is seen when it is over.
    """

    def __init__(self, stalled: Callable[[], None]) -> None:
        self._stalled = stalled
        self._closed = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """On the loop that is to be watched."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(LIMIT_S)

    def _watch(self) -> None:
        while True:
            before = _Moment.now()
            if self._closed.wait(_INTERVAL_S):
                return
            try:
                self._await_turn(_held_up(before, _Moment.now(), _INTERVAL_S))
            except RuntimeError:  # the loop is closed
                return

    def _await_turn(self, waited: float) -> None:
        """`waited`: the interpreter was held for so long already."""
        assert self._loop is not None
        turned = threading.Event()
        self._loop.call_soon_threadsafe(turned.set)
        told, done = False, False
        while not self._closed.is_set():
            if waited > LIMIT_S and not told:
                told = True
                self._tell(waited)
            if done:
                break
            before = _Moment.now()
            done = turned.wait(_SLICE_S)
            after = _Moment.now()
            waited += min(after.elapsed - before.elapsed, _SLICE_S) + _held_up(before, after, _SLICE_S)
        if told:
            log.warning("the event loop turns again, after %.1f s", waited)
            self._loop.call_soon_threadsafe(self._stalled)

    def _tell(self, waited: float) -> None:
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stuck = frames.pop(self._loop_thread, None)
        log.error("the event loop has not turned for %.1f s; it is here", waited, exc_info=_as_error(stuck))
        for ident, frame in frames.items():
            if ident != threading.get_ident():
                log.error(f"meanwhile, the thread {names.get(ident, ident)}", exc_info=_as_error(frame))  # noqa: G004 - each is a text of its own


def _held_up(before: _Moment, after: _Moment, asked: float) -> float:
    """How much longer than it asked for a thread has waited while this process ran; 0 if it did not run."""
    late = after.elapsed - before.elapsed - asked
    return late if late > _SLICE_S and after.cpu - before.cpu > late / 10 else 0.0


def _as_error(frame: FrameType | None) -> Stalled:
    traceback: TracebackType | None = None
    while frame is not None:
        traceback = TracebackType(traceback, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return Stalled().with_traceback(traceback)
