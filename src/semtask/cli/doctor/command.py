"""`doctor`."""

from __future__ import annotations

from collections.abc import Iterable

import click

from semtask.cli import render
from semtask.cli.doctor import checks
from semtask.cli.doctor.patient import FAIL, OK, WARN, Finding
from semtask.cli.session import Command, Session, pass_session
from semtask.errors import ConfigError

_COLORS = {OK: "DONE", WARN: "RUNNING", FAIL: "FAILED"}


@click.command(cls=Command)
@pass_session
def doctor(session: Session) -> int:
    """Look for what is wrong with the daemon, its home and this machine, and say what to do about it.

    Nothing is changed, and no daemon is started. Exit code 1 if something must be fixed.
    """
    try:
        findings: Iterable[Finding] = checks.examine(session.settings)
    except ConfigError as error:
        findings = [checks.of_settings(error)]
    shown = []
    for finding in findings:
        shown.append(finding)
        if not session.json:
            _print(session, finding)
    healthy = all(finding.verdict != FAIL for finding in shown)
    if session.json:
        session.emit({"schema": "doctor.v1", "healthy": healthy, "checks": [finding._asdict() for finding in shown]})
    return 0 if healthy else 1


def _print(session: Session, finding: Finding) -> None:
    if session.quiet and finding.verdict == OK:
        return
    verdict = render.paint(f"{finding.verdict:<4}", _COLORS[finding.verdict], colored=session.colored)
    session.line(f"{verdict}  {finding.name:<15}  {render.printable(finding.text)}")
    if finding.fix:
        session.line(f"{'':<23}{render.printable(finding.fix)}")
