"""Where the output of jobs goes here, and what is said to whoever waits for one."""

from __future__ import annotations

import base64
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from semtask.cli import render
from semtask.cli.arguments import now_ms

if TYPE_CHECKING:
    from semtask.cli.session import Session
    from semtask.client.logs import Piece
    from semtask.protocol.jobs import JobView

_EXPLAINED = 3  # of many jobs that wait, so many are explained
_EXPLAINED_BY_OTHERS = frozenset({"retry", "other_job"})  # the end of the attempt before, or why the other job waits


class Explanation:
    """Why jobs that somebody waits for have not begun or do not end; given once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._given = False

    def give(self, jobs: Iterable[JobView]) -> None:
        if self._given:
            return
        self._given = True
        for job in [job for job in jobs if job.waiting][:_EXPLAINED]:
            if job.waiting is not None and job.waiting.reason not in _EXPLAINED_BY_OTHERS:
                self._session.notice(f"{render.short(job.job_id)} waits: {render.why_waiting(job, now_ms())}")


def writes_apart(job: JobView) -> bool:
    """Whether the stderr of a job (with its payload) has a log of its own."""
    return (job.payload or {}).get("stderr") == "split"


def streams_to(*, apart: bool) -> dict[str, int]:
    """The streams of a job and the descriptors of ours that they go to."""
    sys.stdout.flush()
    return {"stdout": 1, "stderr": 2} if apart else {"stdout": 1}


class Sink:
    """Where output goes: as raw bytes to a descriptor of each stream, or as JSON lines. Usable from several threads.

    `beside` is the descriptor whose output our messages on stderr must not interrupt.
    """

    def __init__(
        self,
        job_id: str,
        *,
        emit: Callable[[Any], None] | None,
        notice: Callable[[str], None],
        beside: int | None = None,
    ) -> None:
        self._beside = beside
        self._job_id = job_id
        self._emit = emit
        self._notice = notice
        self._lock = threading.Lock()
        self._in_line = False

    def end_line(self) -> None:
        """Before a message on stderr: output that stops within a line must not run into it."""
        if self._in_line:
            self._in_line = False
            os.write(2, b"\n")

    def write(self, stream: str, fd: int, piece: Piece) -> None:
        """Raises OSError (BrokenPipeError) if nobody takes it."""
        if self._emit is not None:
            with self._lock:
                self._emit(self._event(stream, piece))
            return
        if piece.omitted:
            self._notice(f"{piece.omitted:,} bytes of {stream} are missing here: the log was over its limit")
        if piece.data and fd == self._beside:
            self._in_line = not piece.data.endswith(b"\n")
        view = memoryview(piece.data)
        while view:
            view = view[os.write(fd, view) :]

    def _event(self, stream: str, piece: Piece) -> dict[str, Any]:
        event: dict[str, Any] = {
            "schema": "log.v1",
            "job_id": self._job_id,
            "attempt": piece.attempt,
            "stream": stream,
            "offset": piece.offset,
            "omitted_bytes": piece.omitted,
            "encoding": "utf-8",
        }
        try:
            event["chunk"] = piece.data.decode()
        except UnicodeDecodeError:
            event["chunk"] = base64.b64encode(piece.data).decode()
            event["encoding"] = "base64"
        return event
