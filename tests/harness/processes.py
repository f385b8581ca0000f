"""Which processes a home has, by their kinds, told from the process table alone; and how they are killed."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from pathlib import Path
from typing import Literal

from tests.daemon.rig import processes_of

Kind = Literal["daemon", "launcher", "shim", "worker", "other"]


def by_kind(home: Path) -> dict[Kind, list[int]]:
    found: dict[Kind, list[int]] = defaultdict(list)
    for pid, cmdline in processes_of(home).items():
        found[kind_of(pid, cmdline)].append(pid)
    return found


def kind_of(pid: int, cmdline: str) -> Kind:
    if "semtask.launch.launcher" in cmdline or "tests.harness.launcher" in cmdline:
        # A launcher begins a session, and its shims stay in it.
        try:
            return "launcher" if os.getsid(pid) == pid else "shim"
        except ProcessLookupError:
            return "other"
    if "-m semtask.worker" in cmdline:
        return "worker"
    return "daemon" if "daemon" in cmdline.split() else "other"


def kind_of_pid(pid: int) -> Kind | None:
    """None if there is no such process."""
    try:
        cmdline = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except FileNotFoundError:
        return None
    return kind_of(pid, cmdline)


def kill(pid: int, kind: Kind) -> bool:
    """SIGKILL, if the process is still what it was found to be."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if kind_of_pid(pid) != kind:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True
