"""What `doctor` finds about who may do what: the named tokens, and the policy for commands."""

from __future__ import annotations

from collections.abc import Iterator

from semtask.cli.doctor.patient import Finding, Patient, fail, ok, warn
from semtask.errors import ConfigError


def tokens(patient: Patient) -> Iterator[Finding]:
    from semtask.host.tokens import path_of, read_tokens

    home = patient.settings.home
    try:
        count = len(read_tokens(home))
    except ConfigError as error:
        yield fail(f"none is accepted: {error.message}", f"fix {path_of(home)}; the daemon reads it again by itself")
        return
    yield ok(f"{count} in {path_of(home)}" if count else "none: the daemon is for you alone")


def command_policy(patient: Patient) -> Iterator[Finding]:
    from semtask.host.command_policy import PolicyFile, rules_of

    settings = patient.settings
    file = PolicyFile(settings.command_policy_file, must=settings.command_policy is not None)
    try:
        policy = file.read()
    except ConfigError as error:
        yield fail(
            f"no command is accepted or started: {error.message}",
            "fix it; the daemon reads it again by itself, and commands that wait are not lost",
        )
        return
    if policy is None:
        yield ok(f"every command may run: there is no {file.path}")
        return
    rules = rules_of(policy)
    unknown = sorted({rule.words[0] for rule in rules.allow or () if rule.program is None})
    if unknown:
        yield warn(
            f"it allows what is not there: {', '.join(unknown)}", "fix the names in `allow`, or set `path` in the file"
        )
    else:
        yield ok(str(file.path))
