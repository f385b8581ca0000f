"""What is said to read the output of a job: logs.tail.v1."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from semtask.protocol.fields import JobId, Params, Result


class TailParams(Params):
    """Either `lines` (the last ones), or a position: `offset` (a negative one counts from the end) and `limit`.

    `attempt` is a claim_no; without it the newest. With `wait_ms` the answer waits for new bytes or the end.
    """

    job_id: JobId
    lines: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType = UNSET
    attempt: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    stream: Literal["stdout", "stderr"] = "stdout"
    offset: int | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1_048_576)] = 65_536
    wait_ms: Annotated[int, Meta(ge=0, le=30_000)] = 0


class TailedLines(Result):
    """The last lines of an attempt, bytes that are no UTF-8 replaced. Without a log: no path and no lines."""

    job_id: str
    log_path: str | None
    lines: list[str]


class TailedChunk(Result):
    """`chunk` is base64 if `encoding` says so (bytes that are no UTF-8), else text.

    `omitted_bytes` lie between the offset asked for and the first byte of the chunk: the cut-out middle of a log over
    its cap. `eof`: the attempt has ended and this was its last byte. `attempt` is the claim_no that was read.
    """

    chunk: str
    encoding: Literal["utf-8", "base64"]
    next_offset: int
    eof: bool
    omitted_bytes: int
    attempt: int
