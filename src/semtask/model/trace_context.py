"""W3C trace context: the ids that tie a job to the trace of its caller.

A job keeps the `traceparent` of its enqueue and hands it on to its command; what is logged about the job bears the
trace id in it. Standard library only: the command line looks at its own before every enqueue.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# Ids of zeros only and version ff are invalid, says the standard.
TRACEPARENT = r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"

_TRACEPARENT = re.compile(TRACEPARENT)
_TRACE_ID = slice(3, 35)
_TRACE_ID_BYTES = 16


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace id (32 hexadecimal digits) in a traceparent; None without a valid one."""
    return traceparent[_TRACE_ID] if traceparent and _TRACEPARENT.fullmatch(traceparent) else None


def new_trace_id(random_bytes: Callable[[int], bytes]) -> str:
    """A trace id that is not zero, from a source like `secrets.token_bytes`."""
    while True:
        value = random_bytes(_TRACE_ID_BYTES)
        if any(value):
            return value.hex()
