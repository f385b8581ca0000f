"""The bounds of what a user can give: of names, numbers and times, each of them in one place."""

from __future__ import annotations

from msgspec import Meta

from semtask.model.trace_context import TRACEPARENT

# What a terminal or a log would obey: controls, ends of lines, and what reverses the text around it.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_VISIBLE = rf"^[^{_CONTROL}]*\Z"

# A `description` says in words what a pattern lets through.
QUEUE_NAME = Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z", description="letters, digits, _ and -, 1 to 64")
JOB_TYPE = Meta(
    min_length=1, max_length=128, pattern=_VISIBLE, description="1 to 128 characters, no control characters"
)
SUBJECT_KEY = Meta(min_length=1, max_length=512, pattern=r"^[^\0]*\Z", description="1 to 512 characters, no NUL")
TAG = Meta(min_length=1, max_length=256, pattern=_VISIBLE, description="1 to 256 characters, no control characters")
JOB_ID = Meta(
    pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z",
    description="a job id as dev.enqueue.v1 gave it",
)
IDEMPOTENCY_KEY = Meta(min_length=1, max_length=256)
SOURCE = Meta(min_length=1, max_length=4096)
ABSOLUTE_PATH = Meta(min_length=1, max_length=4096, description="an absolute path")
TRACE_PARENT = Meta(pattern=rf"^{TRACEPARENT}\Z", description="a W3C traceparent header")

PRIORITY = Meta(ge=-100, le=100)
MAX_ATTEMPTS = Meta(ge=0, le=1000)
BACKOFF_FACTOR = Meta(ge=1, le=1000)

# Durations in ms, times in epoch ms.
_DAY = 86_400_000
_YEAR = 365 * _DAY
GRACE = Meta(ge=0, le=60_000)
RETRY_BASE_DELAY = Meta(ge=0, le=_DAY)
RETRY_MAX_DELAY = Meta(ge=0, le=_YEAR)
TIMEOUT = Meta(ge=1, le=_YEAR)
TTL = Meta(ge=1, le=1000 * _YEAR)
DELAY = Meta(ge=0, le=1000 * _YEAR)
MOMENT = Meta(ge=0, le=253_402_300_799_999)
