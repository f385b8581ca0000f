"""Reading the output of jobs to its end: over attempts, and over a restart of the daemon."""

from __future__ import annotations

import base64
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semtask.cli import render
from semtask.cli.arguments import now_ms
from semtask.client.transport import Transport
from semtask.errors import DaemonUnavailable, Throttled
from semtask.model.state import FINAL

if TYPE_CHECKING:
    from semtask.cli.session import Session

RECONNECT_S = 15.0
_WAIT_MS = 20_000
EXPLAIN_AFTER_MS = 2000  # whoever waits for so long wants to know why
_LONG_WAIT_MS = 60_000
_LOOK_AGAIN_MS = 100
_FIRST_LOOK_BACK = 8192
_CHUNK = 1 << 20


def patient_call(transport: Transport, method: str, params: Mapping[str, Any], timeout: float = 30.0) -> Any:
    """As Transport.call, but a daemon that is being restarted is waited for, RECONNECT_S at most."""
    give_up: float | None = None
    while True:
        try:
            return transport.call(method, params, timeout)
        except (DaemonUnavailable, Throttled):
            now = time.monotonic()
            give_up = give_up or now + RECONNECT_S
            if now >= give_up:
                raise
            time.sleep(0.1)


def tell_why_it_waits(session: Session, job: dict[str, Any]) -> None:
    """For whoever waits for a job that has not begun, or never ends; a retry was told already."""
    if job.get("waiting") and job["waiting"]["reason"] not in {"retry", "other_job"}:
        session.notice(f"{render.short(job['job_id'])} waits: {render.why_waiting(job, now_ms())}")


def wait_for_end(transport: Transport, job_id: str, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The job, once it has ended. `tell` is given the job if it has not begun after a while."""
    timeout_ms = EXPLAIN_AFTER_MS
    while True:
        params = {"job_ids": [job_id], "timeout_ms": timeout_ms}
        answer = patient_call(transport, "dev.wait.v1", params, 30 + timeout_ms / 1000)
        job = dict(answer["jobs"][0])
        if not answer["timed_out"]:
            return job
        if timeout_ms == EXPLAIN_AFTER_MS:
            tell(job)
        timeout_ms = _LONG_WAIT_MS


@dataclass(frozen=True)
class Piece:
    """Bytes of output, and where they stood. `omitted` bytes before them were cut out of the log."""

    data: bytes
    attempt: int
    offset: int
    omitted: int


class Reader:
    """Reads one stream of a job from its beginning; with `follow` until the job has ended, retries included.

    `between` is given the job, and the attempt (claim_no) that was read, once between two attempts.
    """

    def __init__(
        self,
        transport: Transport,
        job_id: str,
        stream: str,
        *,
        follow: bool,
        attempt: int | None = None,
        between: Callable[[dict[str, Any], int], None] | None = None,
    ) -> None:
        self._transport = transport
        self._job_id = job_id
        self._stream = stream
        self._follow = follow
        self._attempt = attempt
        self._only_this_attempt = attempt is not None
        self._between = between
        self._offset = 0

    def pieces(self, last_lines: int | None = None) -> Iterator[Piece]:
        """The output, or from its `last_lines` last lines on."""
        if last_lines is not None:
            self._offset = self._start_of_tail(last_lines)
        while True:
            piece, eof = self._read(self._offset, _WAIT_MS if self._follow else 0)
            if piece.data or piece.omitted:
                yield piece
            elif not self._follow:
                return
            if eof and not self._next_attempt():
                return

    def _read(self, offset: int, wait_ms: int) -> tuple[Piece, bool]:
        params: dict[str, Any] = {
            "job_id": self._job_id,
            "stream": self._stream,
            "offset": offset,
            "limit": _CHUNK,
            "wait_ms": wait_ms,
        }
        if self._attempt is not None:
            params["attempt"] = self._attempt
        answer = patient_call(self._transport, "logs.tail.v1", params, 30 + wait_ms / 1000)
        text = answer["chunk"]
        data = base64.b64decode(text) if answer["encoding"] == "base64" else text.encode()
        self._attempt = answer["attempt"] or None
        self._offset = answer["next_offset"]
        return Piece(data, answer["attempt"], self._offset - len(data), answer["omitted_bytes"]), answer["eof"]

    def _start_of_tail(self, lines: int) -> int:
        """Where the last lines begin, as they are now, however long they are; a cut-out middle is an end, too.

        The log is searched backwards, a small piece first: most lines are short.
        """
        last, _ = self._read(-1, 0)
        start = last.offset + len(last.data)
        wanted = lines + (last.data == b"\n")
        back = _FIRST_LOOK_BACK
        while start > 0 and wanted > 0:
            begin = max(0, start - back)
            offset, data = self._stretch(begin, start)
            end = len(data)
            while (end := data.rfind(b"\n", 0, end)) >= 0:
                wanted -= 1
                if wanted == 0:
                    return offset + end + 1
            if offset > begin:  # what was before it is cut out
                return offset
            start, back = begin, _CHUNK
        return start

    def _stretch(self, begin: int, end: int) -> tuple[int, bytes]:
        """What is there of the bytes from `begin` to `end`, with its offset; if there is a hole, what is behind it."""
        offset, data = begin, b""
        while begin < end:
            piece, _ = self._read(begin, 0)
            if not piece.data:  # it was deleted meanwhile
                break
            if piece.omitted:
                offset, data = piece.offset, b""
            data += piece.data
            begin = piece.offset + len(piece.data)
        return offset, data[: max(0, end - offset)]

    def _next_attempt(self) -> bool:
        """Whether there is another attempt to read; waits for it while the job lives."""
        if self._only_this_attempt or not self._follow:
            return False
        read = self._attempt or 0
        wait_ms = 0
        while True:
            params = {"job_ids": [self._job_id], "timeout_ms": wait_ms}
            answer = patient_call(self._transport, "dev.wait.v1", params, 30 + wait_ms / 1000)
            job = answer["jobs"][0]
            if wait_ms == 0:
                self._tell_between(job, read)
            if job["claim_no"] > read:
                self._attempt, self._offset = read + 1, 0
                return True
            if job["state"] in FINAL:
                return False
            wait_ms = _until_due(job)

    def _tell_between(self, job: dict[str, Any], read: int) -> None:
        """Unless nothing has run yet, or nothing follows."""
        if self._between is not None and read > 0 and (job["claim_no"] > read or job["state"] not in FINAL):
            self._between(job, read)


def _until_due(job: dict[str, Any]) -> int:
    """How long to wait before the next look at a job between two attempts."""
    if job["state"] != "SCHEDULED" or job.get("run_at") is None:
        return _LOOK_AGAIN_MS
    left = int(job["run_at"]) - round(time.time() * 1000)
    return min(left, _WAIT_MS) if left > 0 else _LOOK_AGAIN_MS


def writes_apart(job: dict[str, Any]) -> bool:
    """Whether the stderr of a job (with its payload) has a log of its own."""
    return (job.get("payload") or {}).get("stderr") == "split"


def streams_to(*, apart: bool) -> dict[str, int]:
    """The streams of a job and the descriptors of ours that they go to."""
    sys.stdout.flush()
    return {"stdout": 1, "stderr": 2} if apart else {"stdout": 1}


class Sink:
    """Where output goes: as raw bytes to a descriptor of each stream, or as JSON lines. Usable from several threads.

    `beside` is the descriptor whose output our messages on stderr stand between.
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
