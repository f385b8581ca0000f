"""The end of a job whose worker died under it: its outcome, and what people find in its log."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime

import msgspec

from semtask.executors.evidence import crash_exception, end_of_log
from semtask.model import outcome
from semtask.model.outcome import Outcome
from semtask.workers.death import Death
from semtask.workers.process import Site

log = logging.getLogger("semtask.workers")


def outcome_of(site: Site, key: tuple[str, int], death: Death, *, stopped: bool) -> Outcome:
    """`stopped`: the job had been told to end."""
    error = death.error
    if death.exit_code == 0 and not death.by_us:
        error = f"{error} and without a result"
    tail = "" if death.by_us and not stopped else death.tail
    evidence = _evidence(site, key, death, tail)
    made = outcome.crash(
        error,
        signal=death.signal,
        exit_code=death.exit_code,
        exception=crash_exception(error, evidence) if evidence else None,
    )
    output = death.output if tail else ""
    return msgspec.structs.replace(made, stopped=stopped, log_bytes=_log(site, key, error, output))


def _evidence(site: Site, key: tuple[str, int], death: Death, tail: str) -> str:
    """What is known beside the error: it stays with the job when its log is gone."""
    parts = [part for part in (tail, end_of_log(site.logs.name(*key, "stdout"))) if part]
    if death.max_rss_kib:
        parts.append(f"Most memory of its worker: {death.max_rss_kib / 1024:.0f} MiB")
    return "\n\n".join(parts)


def _log(site: Site, key: tuple[str, int], error: str, output: str) -> int | None:
    """Add a line with `error` to the log of a job, and what it wrote to its worker's own; the size of the log then.

    None where it cannot be written: the error is stored with the job as well.
    """
    path = site.logs.name(*key, "stdout")
    time = datetime.fromtimestamp(site.now_ms() / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    text = f"{time}Z CRITICAL {error}\n" + (f"{output}\n" if output else "")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(path, flags, 0o600)
        try:
            os.write(fd, text.encode("utf-8", "replace"))
            return os.fstat(fd).st_size
        finally:
            os.close(fd)
    except OSError as failed:
        log.warning("the log of a job could not be written: %s", failed, extra={"job_id": key[0], "claim_no": key[1]})
        return None
