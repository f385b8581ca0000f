"""What `doctor` finds about the settings, and about the home that they name."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from semtask.cli.doctor.patient import Finding, Patient, existing, fail, ok, warn
from semtask.config.unused import misplaced, unknown_environment
from semtask.host.filesystem import require_local


def settings(patient: Patient) -> Iterator[Finding]:
    good = True
    for name, problem in unknown_environment().items():
        good = False
        yield warn(f"{name} {problem}", f"unset {name}")
    for name, path in misplaced(patient.settings).items():
        good = False
        yield warn(
            f"{name} in {path} has no effect: one daemon serves all projects of its home",
            f"move it to the user file, ~/.config/semtask/config.toml, or to {patient.settings.home}/config.toml",
        )
    if good:
        files = {source for source in patient.settings.origin.values() if source.startswith("/")}
        yield ok("from " + ", ".join([*sorted(files), "the environment and defaults"]))


def home(patient: Patient) -> Iterator[Finding]:
    home = patient.settings.home
    there = existing(home)
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        what = "cannot be written to" if there == home else f"cannot be made, as you may not write to {there}"
        yield fail(f"{home} {what}", "choose another one with SEMANTICA_HOME")
        return
    if there != home:
        yield ok(f"{home} is not there yet; the first start of the daemon makes it")
        return
    bad = [
        finding
        for path, allowed in (
            (home, 0o755),
            (patient.settings.run_dir, 0o700),
            (patient.settings.logs_dir, 0o755),
            (patient.settings.attempts_dir, 0o700),
            (patient.settings.socket, 0o600),
            (patient.settings.token_file, 0o600),
            (patient.settings.database, 0o600),
        )
        if (finding := _private(path, allowed))
    ]
    yield from bad
    if not bad:
        yield ok(f"{home} belongs to you, and nobody else can write or connect")


def _private(path: Path, allowed: int) -> Finding | None:
    """What is wrong with the owner or mode of a file or folder that need not be there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        return fail(f"{path} belongs to user id {found.st_uid}, not to you", "use a home of your own: SEMANTICA_HOME")
    if mode & ~allowed & 0o777:
        return fail(f"{path} has mode {mode:04o}; others get in", f"chmod {allowed:o} {path}")
    return None


def file_system(patient: Patient) -> Iterator[Finding]:
    folders = {patient.settings.home, patient.settings.database.parent}
    for folder in folders:
        require_local(folder)
    yield ok("local: " + ", ".join(map(str, sorted(folders))))
