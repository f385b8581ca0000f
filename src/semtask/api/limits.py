"""The limits of the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bytes and seconds. `body_s` and `answer_s` are for one whole body and one whole response.

    `max_bodies` bodies of the largest size are held simultaneously, over all connections; small ones are always read.

    At most `max_streams` responses are streamed simultaneously. The client of one is disconnected when its socket
    stays full for `stream_stall_s`; nothing more is produced for it meanwhile.
    """

    max_body_bytes: int
    max_bodies: int = 16
    small_body_bytes: int = 64 * 1024
    max_head_bytes: int = 16 * 1024
    head_s: float = 10.0
    body_s: float = 30.0
    answer_s: float = 30.0
    linger_s: float = 2.0
    max_streams: int = 64
    stream_stall_s: float = 30.0
