"""Waiting for the end of jobs, over a restart of the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from semtask.client.messages import WAIT, Sender
from semtask.client.patience import send_patiently

if TYPE_CHECKING:
    from semtask.protocol.jobs import JobView, Waited

EXPLAIN_AFTER_MS = 2000  # whoever waits for so long wants to know why nothing happens
LONGEST_MS = 60_000  # of one dev.wait.v1
MOST_IDS = 1000  # of one dev.wait.v1


def wait_for_ends(
    send: Sender,
    job_ids: Sequence[str],
    explain: Callable[[list[JobView]], None],
    *,
    mode: Literal["any", "all"] = "all",
    deadline: float | None = None,
    with_results: bool = False,
) -> Waited:
    """The jobs once any or all of them have ended, or at the `deadline` (monotonic): then `timed_out` is set.

    `explain` is given the jobs when EXPLAIN_AFTER_MS have passed without that, and about once a minute afterwards.
    """
    longest_ms = EXPLAIN_AFTER_MS
    while True:
        left_ms = longest_ms if deadline is None else max(0, round((deadline - time.monotonic()) * 1000))
        asked = {"job_ids": list(job_ids), "mode": mode, "timeout_ms": min(left_ms, longest_ms)}
        if with_results:
            asked["include"] = ["result"]
        waited = send_patiently(send, WAIT(**asked), deadline=deadline)
        if not waited.timed_out or (deadline is not None and time.monotonic() >= deadline):
            return waited
        if left_ms >= longest_ms:
            explain(waited.jobs)
            longest_ms = LONGEST_MS
