"""Reading the output of a job to its end: over attempts, and over a restart of the daemon.

`LogReader` does no I/O: it yields requests, is sent their answers, and yields what it has read. `follow` and `afollow`
send them.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from semtask.client.messages import TAIL, WAIT, AsyncSender, Request, Sender
from semtask.client.patience import asend_patiently, send_patiently
from semtask.model.state import FINAL, State

if TYPE_CHECKING:
    from semtask.protocol.jobs import JobView
    from semtask.protocol.logs import TailedChunk

T = TypeVar("T")

WAIT_MS = 20_000
_LOOK_AGAIN_MS = 100
_FIRST_LOOK_BACK = 8192
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Bytes of output, and where they are. `omitted` bytes before them were cut out of the log."""

    data: bytes
    attempt: int
    offset: int
    omitted: int


@dataclass(frozen=True)
class AttemptRead:
    """An attempt (a claim_no) was read to its end."""

    attempt: int


@dataclass(frozen=True)
class AttemptFollows:
    """Another attempt follows the one that was read, `ended`."""

    job: JobView
    ended: int


Read: TypeAlias = Piece | AttemptRead | AttemptFollows
Conversation: TypeAlias = Generator[Request[Any] | T, Any, None]
_Asked: TypeAlias = Generator[Request[Any], Any, T]


class LogReader:
    """Reads one stream of a job from its beginning; with `follow` until the job has ended, retries included.

    `attempt` is a claim_no: only that one is read; otherwise the newest and, with `follow`, those that come. With
    `whole` those before the newest are read first, too. `now_ms` is the wall clock.
    """

    def __init__(
        self,
        job_id: str,
        stream: str,
        now_ms: Callable[[], float],
        *,
        follow: bool,
        attempt: int | None = None,
        whole: bool = False,
    ) -> None:
        self._job_id = job_id
        self._stream = stream
        self._now_ms = now_ms
        self._follow = follow
        self._attempt = attempt
        self._only_this_attempt = attempt is not None
        self._whole = whole  # until it is known which attempt is read first
        self._offset = 0

    def read(self, last_lines: int | None = None) -> Conversation[Read]:
        """The output that is new since the last call, or from its `last_lines` last lines on."""
        if last_lines is not None:
            self._offset = yield from self._start_of_tail(last_lines)
        while True:
            piece, eof = yield from self._piece(self._offset, WAIT_MS if self._follow else 0)
            begins_late, self._whole = self._whole and piece.attempt > 1, self._whole and piece.attempt == 0
            if begins_late:
                self._attempt, self._offset = 1, 0
                continue
            if piece.data or piece.omitted:
                yield piece
            elif not self._follow:
                return
            if eof:
                yield AttemptRead(piece.attempt)
                if not (yield from self._next_attempt()):
                    return

    def _piece(self, offset: int, wait_ms: int) -> _Asked[tuple[Piece, bool]]:
        which = {} if self._attempt is None else {"attempt": self._attempt}
        chunk: TailedChunk = yield TAIL(
            job_id=self._job_id, stream=self._stream, offset=offset, limit=_CHUNK, wait_ms=wait_ms, **which
        )
        data = base64.b64decode(chunk.chunk) if chunk.encoding == "base64" else chunk.chunk.encode()
        self._attempt = chunk.attempt or None
        self._offset = chunk.next_offset
        return Piece(data, chunk.attempt, self._offset - len(data), chunk.omitted_bytes), chunk.eof

    def _start_of_tail(self, lines: int) -> _Asked[int]:
        """Where the last lines begin, as they are now, however long they are; a cut-out middle is an end, too.

        The log is searched backwards, a small piece first: most lines are short.
        """
        last, _ = yield from self._piece(-1, 0)
        start = last.offset + len(last.data)
        wanted = lines + (last.data == b"\n")
        back = _FIRST_LOOK_BACK
        while start > 0 and wanted > 0:
            begin = max(0, start - back)
            offset, data = yield from self._stretch(begin, start)
            end = len(data)
            while (end := data.rfind(b"\n", 0, end)) >= 0:
                wanted -= 1
                if wanted == 0:
                    return offset + end + 1
            if offset > begin:  # what was before it is cut out
                return offset
            start, back = begin, _CHUNK
        return start

    def _stretch(self, begin: int, end: int) -> _Asked[tuple[int, bytes]]:
        """What is there of the bytes from `begin` to `end`, with its offset; if there is a hole, what is behind it."""
        offset, data = begin, b""
        while begin < end:
            piece, _ = yield from self._piece(begin, 0)
            if not piece.data:  # it was deleted meanwhile
                break
            if piece.omitted:
                offset, data = piece.offset, b""
            data += piece.data
            begin = piece.offset + len(piece.data)
        return offset, data[: max(0, end - offset)]

    def _next_attempt(self) -> Generator[Request[Any] | AttemptFollows, Any, bool]:
        """Whether there is another attempt to read; waits for it while the job lives."""
        if self._only_this_attempt or not self._follow:
            return False
        read = self._attempt or 0
        wait_ms = 0
        while True:
            waited = yield WAIT(job_ids=[self._job_id], timeout_ms=wait_ms)
            job: JobView = waited.jobs[0]
            begun, ended = job.claim_no > read, job.state in FINAL
            if wait_ms == 0 and read > 0 and (begun or not ended):
                yield AttemptFollows(job, read)
            if begun:
                self._attempt, self._offset = read + 1, 0
                return True
            if ended:
                return False
            wait_ms = self._until_due(job)

    def _until_due(self, job: JobView) -> int:
        """How long to wait before the next look at a job between two attempts."""
        if job.state != State.SCHEDULED or job.run_at is None:
            return _LOOK_AGAIN_MS
        return min(max(job.run_at - round(self._now_ms()), _LOOK_AGAIN_MS), WAIT_MS)


def follow(conversation: Conversation[T], send: Sender) -> Iterator[T]:
    """What is read, while the requests are sent; a daemon that is being restarted is waited for."""
    answer = None
    while True:
        try:
            item = conversation.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(item, Request):
            answer = send_patiently(send, item)
        else:
            yield item


async def afollow(conversation: Conversation[T], send: AsyncSender) -> AsyncIterator[T]:
    """The same for asyncio."""
    answer = None
    while True:
        try:
            item = conversation.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(item, Request):
            answer = await asend_patiently(send, item)
        else:
            yield item


class Lines:
    """Makes lines of the bytes that come. `errors`: what becomes of bytes that are no UTF-8, as for bytes.decode."""

    def __init__(self, errors: str) -> None:
        self._errors = errors
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that are whole now."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", self._errors) for line in whole]

    def end(self) -> list[str]:
        """The last line, if it has no end of line."""
        rest, self._rest = self._rest, b""
        return [rest.decode("utf-8", self._errors)] if rest else []
