"""What several messages are made of: their bases, and the checked types of their fields."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from semtask.model.trace_context import TRACEPARENT

# Times are epoch ms, durations ms. What a type lets through is checked before a method is called.
QueueName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z", description="letters, digits, _ and -, 1 to 64")]
# What a terminal or a log would obey: controls, ends of lines, and what reverses the text around it.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_VISIBLE = rf"^[^{_CONTROL}]*\Z"
JobType = Annotated[
    str, Meta(min_length=1, max_length=128, pattern=_VISIBLE, description="1 to 128 characters, no control characters")
]
SubjectKey = Annotated[
    str, Meta(min_length=1, max_length=512, pattern=r"^[^\0]*\Z", description="1 to 512 characters, no NUL")
]
Tag = Annotated[
    str, Meta(min_length=1, max_length=256, pattern=_VISIBLE, description="1 to 256 characters, no control characters")
]
JobId = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z",
        description="a job id as dev.enqueue.v1 gave it",
    ),
]
Priority = Annotated[int, Meta(ge=-100, le=100)]
GraceMs = Annotated[int, Meta(ge=0, le=60_000)]
EpochMs = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
DurationMs = Annotated[int, Meta(ge=0, le=31_536_000_000_000)]
TraceParent = Annotated[str, Meta(pattern=rf"^{TRACEPARENT}\Z", description="a W3C traceparent header")]
AbsolutePath = Annotated[str, Meta(min_length=1, max_length=4096, description="an absolute path")]


class Params(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all parameters: one that a class does not have is refused."""


class NoParams(Params):
    pass


class Result(Struct, kw_only=True):
    """Base of all results. Results only grow."""
