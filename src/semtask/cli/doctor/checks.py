"""The checks of `doctor`, in the order in which they are made. Each is a function that yields findings, with what to do
about what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from semtask.cli.doctor.access import command_policy, tokens
from semtask.cli.doctor.apps import apps
from semtask.cli.doctor.daemon import attempts, daemon, port, socket
from semtask.cli.doctor.database import database, sqlite, write_ahead_log
from semtask.cli.doctor.disk import disk, sync
from semtask.cli.doctor.home import file_system, home, settings
from semtask.cli.doctor.machine import clock, inherited, limits, programs
from semtask.cli.doctor.patient import FAIL, Finding, Patient
from semtask.cli.doctor.sandbox import sandbox
from semtask.config.settings import Settings
from semtask.errors import SemtaskError, StartupError

Check = Callable[[Patient], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    daemon,
    socket,
    settings,
    home,
    sqlite,
    file_system,
    database,
    write_ahead_log,
    disk,
    sync,
    limits,
    inherited,
    sandbox,
    clock,
    port,
    attempts,
    apps,
    tokens,
    command_policy,
    programs,
)


def examine(of: Settings) -> Iterator[Finding]:
    """All findings. A check that cannot be made is a finding, too."""
    patient = Patient(of)
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            yield from (finding._replace(name=name) for finding in check(patient))
        except SemtaskError as error:
            yield Finding(name, FAIL, error.message)
        except OSError as error:
            yield Finding(name, FAIL, f"cannot be checked: {error}")


def of_settings(error: StartupError) -> Finding:
    """The only finding where the settings cannot be read: everything else depends on them."""
    return Finding("settings", FAIL, error.message, "fix it; `semtask config validate` checks again")
