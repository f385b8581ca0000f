"""The interruption of a sync task: SIGUSR1 raises in its code, and nowhere else.

A signal handler of Python runs between any two bytecodes of the main thread. It may raise only while the code of a task
runs there (armed), and not inside our own code that the task has called (held), where it would tear a frame or a line.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from semtask.tasks.control import Interrupted


class _InterruptedLoop(Interrupted, KeyboardInterrupt):
    """Raised while an event loop of the task runs.

    Of what is raised inside of a loop (in a callback, in a step of a coroutine, in the wait for events) asyncio and
    uvloop let out only SystemExit and KeyboardInterrupt. Any other exception is logged, and the loop goes on.
    """


_InterruptedLoop.__name__ = _InterruptedLoop.__qualname__ = Interrupted.__name__


def interruption(reason: str) -> Interrupted:
    """What ends the code that runs in this thread now."""
    events = sys.modules.get("asyncio.events")
    if events is not None and events._get_running_loop() is not None:
        return _InterruptedLoop(reason)
    return Interrupted(reason)


class SoftStop:
    """`deliver` reads what the daemon has said, and returns the exception to be raised in the task, if any."""

    def __init__(self, deliver: Callable[[FrameType | None], BaseException | None]) -> None:
        self._deliver = deliver
        self._main = threading.main_thread().ident
        self._armed = False
        self._held = 0
        self._poked = False
        signal.signal(signal.SIGUSR1, self._on_signal)
        os.register_at_fork(after_in_child=self.disarm)

    def forget(self) -> None:
        """Before frames are read: what a signal announced is among them."""
        self._poked = False

    def arm(self) -> None:
        """The code of a task begins. Raises what a signal since `forget` is about."""
        self._armed = True
        if self._poked:
            self._strike(None)

    def disarm(self) -> None:
        self._armed = False

    @property
    def in_task(self) -> bool:
        """Whether the caller is the code of a task in the main thread."""
        return self._armed and threading.get_ident() == self._main

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self._held += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == self._main:
            self._held -= 1
            if self._poked and self._armed and not self._held:
                self._strike(sys._getframe(1))

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        if self._armed and not self._held:
            self._strike(frame)
        else:
            self._poked = True

    def _strike(self, frame: FrameType | None) -> None:
        """At most once a job: its cleaning up is not interrupted again."""
        self._armed = False
        while True:
            self._poked = False
            error = self._deliver(frame)
            if error is not None:
                raise error
            if not self._poked:
                break
        self._armed = True
