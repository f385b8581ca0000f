"""Text for people: tables, times, colours. What comes from jobs is made harmless before it reaches a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from semtask.client.messages import json_of

if TYPE_CHECKING:
    from semtask.protocol.jobs import AttemptView, ExceptionView, JobView

SHORT_ID = 8
_TIMES = frozenset({"created_at", "run_at", "started_at", "finished_at", "kill_failed_at", "deadline", "since"})
_UNRUN = {
    "SUPERSEDED": "was superseded by {by}",
    "SKIPPED_TTL": "was skipped: it did not start within its ttl of {ttl}",
    "SKIPPED_DEADLINE": "was skipped: its deadline passed before it started",
}
_COLORS = {
    "SCHEDULED": "36",
    "QUEUED": "36",
    "RUNNING": "33",
    "DONE": "32",
    "FAILED": "31",
    "CANCELLED": "35",
    "SUPERSEDED": "35",
    "SKIPPED_TTL": "35",
    "SKIPPED_DEADLINE": "35",
}


def printable(text: str) -> str:
    r"""The text with every character that could steer a terminal written as an escape such as \x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def short(job_id: str) -> str:
    """The end of an id: the beginnings of ids made on one day are nearly equal."""
    return job_id[-SHORT_ID:]


def iso(epoch_ms: int) -> str:
    """ISO 8601, UTC, with milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch_ms // 1000)) + f".{epoch_ms % 1000:03d}Z"


def duration(ms: float) -> str:
    """'0.4 s', '12 s', '3m05s', '2h10m', '4d03h'."""
    seconds = max(0.0, ms / 1000)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, below in ((86_400, "d", "h"), (3600, "h", "m"), (60, "m", "s")):
        if whole >= size:
            rest = {"d": whole % size // 3600, "h": whole % size // 60, "m": whole % size}[unit]
            return f"{whole // size}{unit}{rest:02d}{below}"
    return f"{whole} s"


def ago(epoch_ms: int | None, now_ms: float) -> str:
    """'3.2 s ago' or 'in 5m00s'; '-' for None."""
    if epoch_ms is None:
        return "-"
    passed = now_ms - epoch_ms
    return f"{duration(passed)} ago" if passed >= 0 else f"in {duration(-passed)}"


def size(count: int) -> str:
    """'512 B', '4.0 KiB', '1.5 GiB'."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def paint(text: str, state: str, *, colored: bool) -> str:
    """The text in the colour of a state."""
    return f"\x1b[{_COLORS[state]}m{text}\x1b[0m" if colored and state in _COLORS else text


def job_json(job: JobView) -> dict[str, Any]:
    """A job as `--json` prints it: the API's view with times as ISO 8601."""
    shown = {"schema": "job.v1", **with_iso_times(json_of(job))}
    if job.attempts_list is not None:
        shown["attempts_list"] = [with_iso_times(json_of(attempt)) for attempt in job.attempts_list]
    return shown


def with_iso_times(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its times as ISO 8601."""
    return {name: iso(value) if name in _TIMES and value is not None else value for name, value in record.items()}


def took(ran: JobView | AttemptView, now_ms: float) -> str:
    """How long a job or an attempt ran, or has been running."""
    if ran.started_at is None or getattr(ran, "state", None) in {"SCHEDULED", "QUEUED"}:
        return "-"
    return duration((ran.finished_at or now_ms) - ran.started_at)


def name_of(job: JobView) -> str:
    """What the job does, in a few words."""
    return printable(job.command or job.job_type)


def outcome(job: JobView) -> str:
    """How the job ended or why it does not run: 'exit 3', 'signal 9', 'queue_paused', '' for a plain success."""
    if job.state == "RUNNING":
        if job.kill_failed_at:
            return "kill failed"
        return "stopping" if job.stop_reason else _share(job)
    if job.state in {"QUEUED", "SCHEDULED"}:
        return job.waiting.reason if job.waiting else ""
    if job.end_cause == "exit_code":
        return f"exit {job.exit_code}"
    if job.end_cause == "signal":
        return f"signal {job.signal}"
    return "" if job.state in {"DONE", "CANCELLED"} else str(job.end_cause or "")


def _share(job: JobView) -> str:
    """How far a job is: '40 %', or what it counts where it does not say how much there is."""
    progress = job.progress
    if not progress:
        return ""
    if not progress.total:
        return f"{progress.done:g}"
    return f"{min(100, max(0, 100 * progress.done / progress.total)):.0f} %"


def progress_of(job: JobView) -> str | None:
    """'12 of 30 (40 %): parsing'; None if the job has told nothing."""
    progress = job.progress
    if not progress:
        return None
    share = f" of {progress.total:g} ({_share(job)})" if progress.total else ""
    return f"{progress.done:g}{share}" + (f": {progress.text}" if progress.text else "")


def exception_lines(exception: ExceptionView) -> list[str]:
    """As Python shows it, with its causes; without a traceback the exception and its causes."""
    if exception.traceback:
        return str(exception.traceback).rstrip("\n").split("\n")
    lines = f"{exception.type}: {exception.message}".split("\n")
    return [*lines, "caused by", *exception_lines(exception.cause)] if exception.cause else lines


def attempt_of(job: JobView) -> str:
    """'2 of 5': the attempt that runs or comes next, of a finished job the last one.

    Crashes and interruptions have budgets of their own, so they do not use up the attempts.
    """
    number = job.attempts + (job.finished_at is None)
    allowed = max(job.max_attempts, 1) + job.crashes + job.interruptions
    return f"{number} of {allowed}" if allowed > 1 and number <= allowed else str(number)


def next_attempt(job: JobView, ended: int, now_ms: float) -> str:
    """What follows the attempt `ended` (a claim_no), which was not the last one."""
    if job.claim_no > ended:
        return f"attempt {ended + 1} has begun"  # and may be over: its reasons are in `show`
    when = "when its turn comes" if job.state == "QUEUED" else ago(job.run_at, now_ms)
    why = printable(job.error or "no reason is known")
    return f"attempt {ended} ended ({why}); attempt {attempt_of(job)} {when}"


def why_waiting(job: JobView, now_ms: float) -> str | None:
    """Why a job does not run or go on; None if it does, or has ended."""
    waiting = job.waiting
    if waiting is None:
        return None
    due = f"{ago(job.run_at, now_ms)} ({iso(job.run_at)})" if job.run_at is not None else ""
    if waiting.reason == "retry":
        return f"attempt {attempt_of(job)} {due}; the last one: {printable(job.error or 'no reason is known')}"
    if waiting.reason == "scheduled":
        return f"for its time, {due}"
    return printable(waiting.text)


def sentence(job: JobView) -> str:
    """One line on how a job ended."""
    ran = "" if job.started_at is None else f" after {took(job, 0)}"
    state, cause = job.state, job.end_cause
    if job.attempts > 1:
        ran += f", in attempt {attempt_of(job)}"
    if state == "DONE":
        return f"{short(job.job_id)} succeeded in {took(job, 0)}" + (
            f", in attempt {attempt_of(job)}" if job.attempts > 1 else ""
        )
    if state == "CANCELLED":
        how = "was cancelled"
    elif cause == "exit_code":
        how = f"failed with exit code {job.exit_code}"
    elif cause == "signal":
        how = f"was ended by signal {job.signal}"
    elif cause == "timeout":
        how = f"ran longer than its timeout of {duration(job.timeout_ms or 0)} and was ended"
    elif state == "FAILED":
        return f"{short(job.job_id)} failed ({cause}): {printable(job.error or 'no reason is known')}"
    else:
        how = _UNRUN.get(state, "ended {state}").format(
            state=state,
            by=short(job.superseded_by) if job.superseded_by else "another job",
            ttl=duration(job.ttl_ms or 0),
        )
    return f"{short(job.job_id)} {how}{ran}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Aligned lines; the last column is cut at the width of the terminal. Cells may hold colour codes."""
    widths = [max(_width(row[i]) for row in (header, *rows)) for i in range(len(header))]
    room = max(10, screen_size()[0] - sum(widths[:-1]) - 2 * (len(widths) - 1))
    lines = []
    for row in (header, *rows):
        cells = [_pad(cell, widths[i], i in right) for i, cell in enumerate(row[:-1])]
        last = row[-1] if _width(row[-1]) <= room else row[-1][: room - 1] + "…"
        lines.append("  ".join([*cells, last]).rstrip())
    return lines


def screen_size() -> tuple[int, int]:
    """Columns and rows of the terminal that is our stdout; 80 x 24 without one."""
    try:
        columns, rows = os.get_terminal_size(1)
    except OSError:
        columns, rows = 0, 0
    return columns or 80, rows or 24


def _pad(cell: str, width: int, right: bool) -> str:
    fill = " " * (width - _width(cell))
    return fill + cell if right else cell + fill


def _width(cell: str) -> int:
    if "\x1b" not in cell:
        return len(cell)
    plain, _, rest = cell.partition("\x1b[")
    return len(plain) + len(rest.partition("m")[2].partition("\x1b")[0])
