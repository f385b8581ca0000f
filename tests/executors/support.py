"""Logs to test with."""

from __future__ import annotations

import os
import tempfile

import pytest

from semtask.executors.output import LogFiles
from semtask.host.filesystem import punch_hole

JOB = "01890a5d-ac96-774b-bcce-b302099a80fe"
BLOCK = 65_536  # a multiple of every usual block size


def _can_punch() -> bool:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 4 * BLOCK)
        file.flush()
        try:
            punch_hole(file.fileno(), BLOCK, BLOCK)
        except OSError:
            return False
        return os.fstat(file.fileno()).st_blocks * 512 <= 3 * BLOCK


needs_punching = pytest.mark.skipif(not _can_punch(), reason="the file system of the temporary folder punches no holes")


def write_log(files: LogFiles, content: bytes, *, hole: tuple[int, int] | None = None) -> None:
    """Write the stdout log of JOB, claim 1; `hole` is the (start, end) of what is cut out of it."""
    out, _ = files.open(JOB, 1, split=False)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(out, view) :]
        if hole is not None:
            punch_hole(out, hole[0], hole[1] - hole[0])
    finally:
        os.close(out)
