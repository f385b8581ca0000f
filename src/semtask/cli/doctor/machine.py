"""What `doctor` finds about this machine: limits, what the daemon inherited, the clock, and other programs."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator

from semtask.cli import render
from semtask.cli.doctor.patient import Finding, Patient, fail, ok, warn
from semtask.host.open_files import LEAST_OPEN_FILES
from semtask.host.standing import differences

_FILES_PER_PROCESS = 4
_FILES_OF_DAEMON = 128
_PROCESSES_PER_JOB = 4
_EARLIEST = 1_735_689_600_000  # 2025-01-01: before it this program did not exist
_SKEW_MS = 60_000


def limits(patient: Patient) -> Iterator[Finding]:
    """Of the daemon; without one, what it would inherit from us."""
    settings = patient.settings
    needs = {
        "open files (nofile)": (
            resource.RLIMIT_NOFILE,
            settings.max_connections + _FILES_PER_PROCESS * settings.max_processes + _FILES_OF_DAEMON,
            "ulimit -n",
        ),
        "processes (nproc)": (resource.RLIMIT_NPROC, _PROCESSES_PER_JOB * settings.max_processes, "ulimit -u"),
    }
    texts = []
    for name, (kind, need, command) in needs.items():
        soft, _ = resource.prlimit(patient.pid, kind) if patient.pid else resource.getrlimit(kind)
        shown = "no limit" if soft == resource.RLIM_INFINITY else str(soft)
        texts.append(f"{name}: {shown}")
        if kind == resource.RLIMIT_NOFILE and 0 <= soft < LEAST_OPEN_FILES:
            yield fail(
                f"{name}: {soft}, and a daemon needs {LEAST_OPEN_FILES}", f"`{command} {need}` before `semtask up`"
            )
            return
        if soft != resource.RLIM_INFINITY and soft < need:
            yield warn(
                f"{name}: {soft}, and max_connections and max_processes may take {need}",
                f"`{command} {need}` before `semtask up`, or lower the settings",
            )
            return
    yield ok(", ".join(texts))


def inherited(patient: Patient) -> Iterator[Finding]:
    """What the daemon has from whoever started it, and gives to its jobs."""
    if not patient.pid:
        yield ok("no daemon runs; one that is started by a command undoes what the shell has set")
        return
    with open(f"/proc/{patient.pid}/cmdline", "rb") as file:
        by_itself = b"--detached" in file.read().split(b"\0")
    with open(f"/proc/{patient.pid}/cgroup", encoding="utf-8", errors="replace") as file:
        group = file.readline().strip().rpartition(":")[2]
    found = ", ".join(differences(patient.pid))
    where = f"control group {group}"
    if found and by_itself:
        yield warn(
            f"{found}: of the shell that started the daemon, which could not undo it; {where}",
            "jobs have it too; `semtask down`, and `semtask up` from a shell without it",
        )
    else:
        yield ok(f"{found or 'nothing that slows jobs down'}; {where}")


def clock(patient: Patient) -> Iterator[Finding]:
    now = time.time() * 1000
    if now < _EARLIEST:
        yield fail(f"it says {render.iso(int(now))}, which is in the past", "set the clock; times of jobs depend on it")
        return
    newest = max(
        (p.stat().st_mtime * 1000 for p in (patient.settings.database, patient.settings.logs_dir) if p.exists()),
        default=0,
    )
    if newest > now + _SKEW_MS:
        yield warn(
            f"it was turned back: the home was written {render.duration(newest - now)} in the future",
            "deadlines and times of jobs from before are late by as much",
        )
    else:
        yield ok(render.iso(int(now)))


def programs(_patient: Patient) -> Iterator[Finding]:
    """Another program may answer to our names."""
    found: dict[str, str] = {}
    for folder in os.get_exec_path():
        path = shutil.which("semtask", path=folder)
        if path:
            found.setdefault(os.path.realpath(path), path)
    others = list(found.values())[1:]
    if others:
        yield warn(f"`semtask` is {next(iter(found.values()))}, but there is {', '.join(others)} too", "remove one")
    if other := shutil.which("semantica"):
        yield warn(f"{other} is another program; both read SEMANTICA_* variables", "set SEMANTICA_HOME for each alone")
    if not others and not other:
        yield ok("no other `semtask` or `semantica` on PATH")
