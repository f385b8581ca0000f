"""What is known of an attempt whose end nobody reported: the ends of its logs, and the exception made of them."""

from __future__ import annotations

import os

import msgspec

from semtask.protocol.frames import ExceptionInfo

TAIL_BYTES = 4096
OUTPUT_BYTES = 1 << 20
_CONTINUATION = bytes(range(0x80, 0xC0))  # of a character of UTF-8, its first byte excepted
_LOG_LINES = 20


def tail(path: str, start: int) -> str:
    """The end of a log, from `start` on; what is no UTF-8 is replaced."""
    return _end(path, start, TAIL_BYTES)[1]


def output(path: str, start: int) -> str:
    """What a job has written to the log of its worker, with a line for what is left out of it."""
    missing, text = _end(path, start, OUTPUT_BYTES)
    return f"[... {missing} bytes left out ...]\n{text}" if missing else text


def _end(path: str, start: int, limit: int) -> tuple[int, str]:
    """(how many bytes from `start` on come before it, the end of a log)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # a job has removed it; it only serves to explain
        return 0, ""
    try:
        begin = max(start, os.fstat(fd).st_size - limit)
        data = os.pread(fd, limit, begin)
        if begin > start:  # it may be in the middle of a character
            whole = data.lstrip(_CONTINUATION) if data[:3].strip(_CONTINUATION) else data
            begin += len(data) - len(whole)
            data = whole
        return begin - start, data.decode(errors="replace").strip("\n\0")
    finally:
        os.close(fd)


def end_of_log(path: str) -> str:
    """The last lines of a job's log, with a heading; nothing of an empty one."""
    lines = tail(path, 0).splitlines()[-_LOG_LINES:]
    return "\n".join(["The last lines of its log:", *(f"  {line}" for line in lines)]) if lines else ""


def crash_exception(error: str, evidence: str, *, kind: str = "WorkerCrash") -> str:
    """For those who ask for the exception of a job that ended without one: what is known of its end."""
    return msgspec.json.encode(ExceptionInfo(type=kind, message=error, traceback=evidence)).decode()
