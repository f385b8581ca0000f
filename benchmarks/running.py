"""A real daemon in a throw-away home, for the benchmarks."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from semtask import Client
from semtask.config.loading import load
from semtask.host.app_list import add_app
from semtask.model.app import App


@contextmanager
def daemon(apps: Sequence[App] = (), **env: str) -> Iterator[tuple[Client, Path, int]]:
    """A client, the home, and the pid of the daemon."""
    home = Path(tempfile.mkdtemp(prefix="semtask-bench-"))
    for app in apps:
        add_app(load({**os.environ, "SEMANTICA_HOME": str(home)}), app)
    process = subprocess.Popen(
        [sys.executable, "-m", "semtask", "daemon", "--detached"],  # as a client starts it
        env={**os.environ, "SEMANTICA_HOME": str(home), **env},
        stderr=subprocess.DEVNULL,
    )
    try:
        with Client(home, autostart=False) as client:
            wait_ready(client)
            yield client, home, process.pid
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home)


def wait_ready(client: Client) -> None:
    from semtask.errors import SemtaskError

    end = time.monotonic() + 20
    while True:
        try:
            client.stats()
            return
        except SemtaskError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median_seconds(work: Callable[[], object], times: int) -> float:
    return statistics.median(seconds(work) for _ in range(times))


def pss_kb(pid: int) -> int:
    """Proportional memory of a process, in kB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def helpers_of(pid: int) -> list[int]:
    """The launcher and what is below it."""
    found, pending = [], [pid]
    while pending:
        parent = pending.pop()
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            for task in Path(f"/proc/{parent}/task").iterdir():
                children = [int(c) for c in (task / "children").read_text().split()]
                found += children
                pending += children
    return found
