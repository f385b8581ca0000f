"""The output of a job as lines, over its attempts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, TypeAlias, TypeVar

from semtask.client.calls import call_of
from semtask.client.logs import AttemptRead, Conversation, Lines, LogReader, Piece, Read, afollow, follow
from semtask.client.messages import Request
from semtask.sdk.connection import Connection

R = TypeVar("R")
Stream: TypeAlias = Literal["stdout", "stderr"]


def read_lines(connection: Connection, job_id: str, stream: Stream, *, follow_it: bool) -> Iterator[str]:
    """The lines of the newest attempt; with `follow_it` until the job has ended, retries included."""
    return follow(_lines(_reader(connection, job_id, stream, follow_it=follow_it)), connection.answer)


async def aread_lines(
    connection: Connection,
    job_id: str,
    stream: Stream,
    waiting: Callable[[], AbstractContextManager[None]],
    *,
    follow_it: bool,
) -> AsyncIterator[str]:
    """`waiting` is entered for each request: the daemon cannot tell by itself which of many async jobs it is from."""

    async def send(request: Request[R], /) -> R:
        with waiting():
            return await connection.asend(call_of(request))

    async for line in afollow(_lines(_reader(connection, job_id, stream, follow_it=follow_it)), send):
        yield line


def _reader(connection: Connection, job_id: str, stream: Stream, *, follow_it: bool) -> Conversation[Read]:
    return LogReader(job_id, stream, connection.now_ms, follow=follow_it).read()


def _lines(conversation: Conversation[Read]) -> Conversation[str]:
    lines = Lines("replace")
    answer = None
    while True:
        try:
            item = conversation.send(answer)
        except StopIteration:
            break
        answer = None
        if isinstance(item, Request):
            answer = yield item
        elif isinstance(item, Piece):
            if item.omitted:
                yield f"[{item.omitted} bytes were cut out of the log here]"
            yield from lines.feed(item.data)
        elif isinstance(item, AttemptRead):
            yield from lines.end()
    yield from lines.end()
