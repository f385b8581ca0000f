"""The output of a job as lines, over its attempts. Sans-IO: it yields requests and is sent their answers."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

from semtask.client import calls
from semtask.client.calls import Call
from semtask.model.state import FINAL, State
from semtask.protocol.jobs import JobView
from semtask.protocol.logs import TailedChunk
from semtask.sdk.connection import Connection

Stream: TypeAlias = Literal["stdout", "stderr"]
_CHUNK = 1 << 20
_WAIT_MS = 20_000
_LOOK_AGAIN_MS = 100

Conversation: TypeAlias = Generator[Call[Any] | str, Any, None]


def read_lines(connection: Connection, conversation: Conversation) -> Iterator[str]:
    answer = None
    while True:
        try:
            item = conversation.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(item, str):
            yield item
        else:
            answer = connection.send(item)


async def aread_lines(
    connection: Connection, conversation: Conversation, waiting: Callable[[], AbstractContextManager[None]]
) -> AsyncIterator[str]:
    """`waiting` is entered for each request: the daemon cannot tell by itself which of many async jobs it is from."""
    answer = None
    while True:
        try:
            item = conversation.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(item, str):
            yield item
        else:
            with waiting():
                answer = await connection.asend(item)


def conversation(job_id: str, stream: Stream, now_ms: Callable[[], int], *, follow: bool) -> Conversation:
    """The lines of the newest attempt; with `follow` those to come too, retries included, until the job has ended."""
    attempt = 0
    while True:
        attempt = yield from _attempt(job_id, stream, attempt, follow=follow)
        if not follow:
            return
        wait_ms = 0
        while True:
            waited = yield calls.wait([job_id], timeout_ms=wait_ms)
            job: JobView = waited.jobs[0]
            if job.claim_no > attempt:
                attempt += 1
                break
            if job.state in FINAL:
                return
            wait_ms = _until_due(job, now_ms())


def _attempt(job_id: str, stream: Stream, attempt: int, *, follow: bool) -> Generator[Call[Any] | str, Any, int]:
    """One attempt (0: the newest one) to its end. Returns which one it was."""
    offset = 0
    rest = b""
    while True:
        which = {"attempt": attempt} if attempt else {}
        chunk: TailedChunk = yield calls.read_log(
            job_id, offset=offset, stream=stream, limit=_CHUNK, wait_ms=_WAIT_MS if follow else 0, **which
        )
        data = base64.b64decode(chunk.chunk) if chunk.encoding == "base64" else chunk.chunk.encode()
        if chunk.omitted_bytes:
            yield f"[{chunk.omitted_bytes} bytes were cut out of the log here]"
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
        attempt = chunk.attempt or attempt
        offset = chunk.next_offset
        if chunk.eof or not (follow or data):
            if rest:
                yield rest.decode("utf-8", "replace")
            return attempt


def _until_due(job: JobView, now_ms: int) -> int:
    """How long to wait before the next look at a job between two attempts."""
    if job.state is not State.SCHEDULED or job.run_at is None:
        return _LOOK_AGAIN_MS
    return min(max(job.run_at - now_ms, _LOOK_AGAIN_MS), _WAIT_MS)
