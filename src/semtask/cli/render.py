"""Text for people: tables, times, colours. What comes from jobs is made harmless before it reaches a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

SHORT_ID = 8
_TIMES = frozenset({"created_at", "run_at", "started_at", "finished_at", "kill_failed_at"})
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


def job_json(job: dict[str, Any]) -> dict[str, Any]:
    """A job as `--json` prints it: the API's view with times as ISO 8601."""
    shown = {"schema": "job.v1", **_with_iso_times(job)}
    if job.get("attempts_list") is not None:
        shown["attempts_list"] = [_with_iso_times(attempt) for attempt in job["attempts_list"]]
    return shown


def _with_iso_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: iso(value) if name in _TIMES and value is not None else value for name, value in record.items()}


def took(job: dict[str, Any], now_ms: float) -> str:
    """How long the job ran, or has been running."""
    if job.get("started_at") is None:
        return "-"
    return duration((job.get("finished_at") or now_ms) - job["started_at"])


def name_of(job: dict[str, Any]) -> str:
    """What the job does, in a few words."""
    return printable(job.get("command") or job["job_type"])


def outcome(job: dict[str, Any]) -> str:
    """How the job ended or why it does not run: 'exit 3', 'signal 9', 'queue_paused', '' for a plain success."""
    if job["state"] == "RUNNING":
        return "kill failed" if job.get("kill_failed_at") else ("stopping" if job.get("stop_reason") else "")
    if job["state"] in {"QUEUED", "SCHEDULED"}:
        return str((job.get("waiting") or {}).get("reason", ""))
    if job.get("end_cause") == "exit_code":
        return f"exit {job['exit_code']}"
    if job.get("end_cause") == "signal":
        return f"signal {job['signal']}"
    return "" if job["state"] in {"DONE", "CANCELLED"} else str(job.get("end_cause") or "")


def sentence(job: dict[str, Any]) -> str:
    """One line on how a job ended."""
    ran = "" if job.get("started_at") is None else f" after {took(job, 0)}"
    state, cause = job["state"], job.get("end_cause")
    if state == "DONE":
        return f"{short(job['job_id'])} succeeded in {took(job, 0)}"
    if state == "CANCELLED":
        return f"{short(job['job_id'])} was cancelled{ran}"
    if cause == "exit_code":
        how = f"failed with exit code {job['exit_code']}"
    elif cause == "signal":
        how = f"was ended by signal {job['signal']}"
    elif state == "FAILED":
        how = f"failed ({cause}): {printable(job.get('error') or 'no reason is known')}"
        return f"{short(job['job_id'])} {how}"
    else:
        how = f"ended {state}"
    return f"{short(job['job_id'])} {how}{ran}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Aligned lines; the last column is cut at the width of the terminal. Cells may hold colour codes."""
    widths = [max(_width(row[i]) for row in (header, *rows)) for i in range(len(header))]
    try:
        columns = os.get_terminal_size(1).columns or 80
    except OSError:
        columns = 80
    room = max(10, columns - sum(widths[:-1]) - 2 * (len(widths) - 1))
    lines = []
    for row in (header, *rows):
        cells = [_pad(cell, widths[i], i in right) for i, cell in enumerate(row[:-1])]
        last = row[-1] if _width(row[-1]) <= room else row[-1][: room - 1] + "…"
        lines.append("  ".join([*cells, last]).rstrip())
    return lines


def _pad(cell: str, width: int, right: bool) -> str:
    fill = " " * (width - _width(cell))
    return fill + cell if right else cell + fill


def _width(cell: str) -> int:
    if "\x1b" not in cell:
        return len(cell)
    plain, _, rest = cell.partition("\x1b[")
    return len(plain) + len(rest.partition("m")[2].partition("\x1b")[0])
