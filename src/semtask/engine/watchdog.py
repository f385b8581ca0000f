"""Notices when the event loop does not turn, and says where it is stuck: nothing else of the daemon could."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NamedTuple

log = logging.getLogger("semtask.watchdog")

LIMIT_S = 1.0
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
    """A thread that looks at the loop while it has work. A turn that takes more than LIMIT_S is a stall: all stacks go
    to the log, once, and `stalled()` is called on the loop when it turns again.

    Time in which this process did not run at all (stopped, or a frozen machine) is no fault of the loop. A stall in C
    code that keeps the interpreter to itself is seen when it is over. While the loop sleeps, so does the thread.
    """

    def __init__(self, stalled: Callable[[], None]) -> None:
        self._stalled = stalled
        self._closed = False
        self._wake = threading.Event()
        self._asleep = True  # the thread
        self._idle = False  # the loop
        self._turn = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """On the loop that is to be watched, which must be one of selectors."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._notice_turns(self._loop._selector)  # type: ignore[attr-defined] # nothing public reports its turns
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(LIMIT_S)

    def _notice_turns(self, selector: Any) -> None:
        wait = selector.select

        def select(timeout: float | None = None) -> Any:
            self._idle = True
            events = wait(timeout)
            self._idle = False
            self._turn += 1
            if self._asleep:
                self._asleep = False
                self._wake.set()
            return events

        selector.select = select

    def _watch(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            self._look_on()
            self._asleep = True
            if not self._idle:  # it began to work just now, and may not have seen that
                self._wake.set()

    def _look_on(self) -> None:
        """Until the loop sleeps."""
        waited, told, turn = 0.0, False, self._turn
        while not self._closed:
            before = _Moment.now()
            time.sleep(_SLICE_S)
            after = _Moment.now()
            held_up = _held_up(before, after, _SLICE_S)
            turned, turn = self._turn != turn or self._idle, self._turn
            waited += held_up + (0.0 if turned else min(after.elapsed - before.elapsed, _SLICE_S))
            if waited > LIMIT_S and not told:
                told = True
                self._tell(waited)
            if turned:
                if told:
                    self._tell_end(waited)
                waited, told = 0.0, False
            if self._idle:
                return

    def _tell_end(self, waited: float) -> None:
        assert self._loop is not None
        log.warning("the event loop turns again, after %.1f s", waited)
        with suppress(RuntimeError):  # the loop is closed
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
