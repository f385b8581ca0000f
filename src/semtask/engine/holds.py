"""What keeps jobs from being claimed, however many slots are free: a pause, a shortage, a busy machine, a policy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from semtask.model.job import ExecutionMode, Job, QueueClass
from semtask.protocol.jobs import WaitingReason
from semtask.store.requests import QueueRow
from semtask.telemetry.events import Hold

log = logging.getLogger("semtask.dispatcher")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STORE_PAUSE_S = 1.0
LOWEST_PRIORITY = -100


class Holds:
    """What is held now, and why. A reason is a text for people; None lets go.

    `resume` is called when a pause, which `back_off` or `store_refused` began, is over.
    """

    def __init__(self, resume: Callable[[], None]) -> None:
        self.suspended: str | None = None  # nothing is claimed
        self.commands: str | None = None  # no command is
        self.throttled: str | None = None  # background queues and jobs with priority below 0 are not
        self.paused: set[str] = set()  # queues
        self._resume = resume
        self._open = False
        self._background: set[str] = set()
        self._pause_s = 0.0
        self._why_pause = ""
        self._pause: Hold = "no_room"
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Before it everything is held."""
        self._open = True

    def close(self) -> None:
        """Everything is held from now on, and no pause ends."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()

    def configure(self, row: QueueRow) -> None:
        """Whether the queue is paused, and whether it yields to a busy machine."""
        for names, belongs in ((self._background, row.queue_class is QueueClass.BACKGROUND), (self.paused, row.paused)):
            if belongs:
                names.add(row.name)
            else:
                names.discard(row.name)

    def back_off(self, why: str) -> None:
        """The machine had no room to start a process: claim nothing for 1 s, doubling to 30 s."""
        if self._timer is None:
            self._pause_s = min(self._pause_s * 2 or FIRST_PAUSE_S, LONGEST_PAUSE_S)
            self._rest(self._pause_s, why, "no_room")

    def room_again(self) -> None:
        """A process was started: the next shortage begins with the short pause again."""
        self._pause_s = 0.0

    def store_refused(self, why: str) -> None:
        """The store could not claim: claim nothing for a second."""
        if self._timer is None:
            self._rest(STORE_PAUSE_S, why, "store")

    def _rest(self, seconds: float, why: str, pause: Hold) -> None:
        log.warning("claiming pauses for %.0f s: %s", seconds, why)
        self._why_pause = why
        self._pause = pause
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end_pause)

    def _end_pause(self) -> None:
        self._timer = None
        self._resume()

    @property
    def everything(self) -> bool:
        """Whether nothing at all is claimed now."""
        return not self._open or bool(self.suspended) or self._timer is not None

    @property
    def shortage(self) -> Hold | None:
        """Why nothing at all is claimed now, in a word for the metrics; None also while the daemon is stopping."""
        if self._timer is not None:
            return self._pause
        return "no_room" if self.suspended else None

    @property
    def min_priority(self) -> int:
        """Jobs below it are held."""
        return 0 if self.throttled else LOWEST_PRIORITY

    def lets(self, queue: str) -> bool:
        """Whether jobs of this queue may be claimed, as far as the queue goes."""
        return queue not in self.paused and not (self.throttled and queue in self._background)

    def why(self, job: Job) -> tuple[WaitingReason, str] | None:
        """Why jobs like this are held now, with a text for people; None if they are not."""
        if not self._open:
            return "stopping_daemon", "the daemon is stopping; it runs after the next start"
        if job.queue in self.paused:
            return "queue_paused", f"queue {job.queue!r} is paused: semtask resume {job.queue}"
        if self.suspended:
            return "machine_full", f"nothing is started now: {self.suspended}"
        if self._timer is not None:
            return "machine_full", f"claiming pauses for a moment: {self._why_pause}"
        if self.commands and job.execution_mode is ExecutionMode.SUBPROCESS:
            return "policy", f"no command is started now: {self.commands}"
        if self.throttled and (job.queue in self._background or job.priority < 0):
            return "throttled", f"background work waits: {self.throttled}"
        return None
