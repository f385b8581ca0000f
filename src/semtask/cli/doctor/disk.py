"""What `doctor` finds about the disk of the home: how much is free, and how fast a write reaches it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from semtask.cli import render
from semtask.cli.doctor.patient import Finding, Patient, existing, fail, ok, warn
from semtask.errors import DaemonUnavailable
from semtask.host.filesystem import free_bytes

_MIB = 1 << 20
_FEW_BYTES, _TOO_FEW_BYTES = 1024 * _MIB, 100 * _MIB
_OF_DISK = {
    "LOW": "make room; `semtask gc --vacuum` deletes old jobs and gives their space back",
    "FULL": "make room by deleting files of others; the daemon goes on by itself",
    "DEGRADED": "look at the log of the kernel (dmesg), and at `semtask db check`",
}
_SLOW_SYNC_MS = 20


def disk(patient: Patient) -> Iterator[Finding]:
    folder = existing(patient.settings.home)
    free = free_bytes(folder)
    text = f"{render.size(free)} free at {folder}"
    with suppress(DaemonUnavailable):  # told by the check of the daemon
        disk = patient.stats and patient.stats.disk
        if disk and disk.state != "OK":
            yield fail(f"{text}; the daemon calls it {disk.state}: {disk.reason}", _OF_DISK[disk.state])
            return
    if free < _TOO_FEW_BYTES:
        yield fail(text, "make room; `semtask gc --vacuum` deletes old jobs and gives their space back")
    elif free < _FEW_BYTES:
        yield warn(text, "`semtask gc --vacuum` deletes old jobs and gives their space back")
    else:
        yield ok(text)


def sync(patient: Patient) -> Iterator[Finding]:
    folder = existing(patient.settings.database.parent)
    median_ms = statistics.median(_sync_times(folder)) * 1000
    text = f"one write reaches the disk in {median_ms:.1f} ms"
    if median_ms > _SLOW_SYNC_MS:
        yield warn(text, "a faster disk for the home, or durability=os for jobs that a power cut may take")
    else:
        yield ok(text)


def _sync_times(folder: Path) -> list[float]:
    # Without a name, so that nothing is left behind whatever happens.
    file = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        times = []
        for _ in range(5):
            os.write(file, b"x" * 4096)
            begin = time.perf_counter()
            os.fsync(file)
            times.append(time.perf_counter() - begin)
        return times
    finally:
        os.close(file)
