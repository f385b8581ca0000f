"""`policy`: which commands may run. It needs no daemon; a running one reads the file again when it changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from semtask.cli import render
from semtask.cli.arguments import existing_folder, variables
from semtask.cli.session import Command, CommandGroup, Session, pass_session
from semtask.config.environment import inherited

if TYPE_CHECKING:
    from semtask.host.command_policy import PolicyFile
    from semtask.model.command_policy import Rule


@click.group(cls=CommandGroup)
def policy() -> None:
    """Say which commands may run: a file with rules, <home>/commands.toml."""


@policy.command(name="check", cls=Command, context_settings={"allow_interspersed_args": False})
@click.argument("words", metavar="[--] COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-e", "--env", multiple=True, metavar="K[=V]", help="As for `semtask run`; PATH says what is started.")
@click.option("--cwd", metavar="DIR", help="The folder in which it would run. Default: this one.")
@pass_session
def policy_check(session: Session, /, words: tuple[str, ...], *, env: tuple[str, ...], cwd: str | None) -> int:
    """Say whether a command may run, or which rule refuses it. Nothing is run.

    Exit code 0 if it may run, 1 if not; 2 if the policy cannot be used, and then nothing may.
    """
    from semtask.host.command_policy import judge, rules_of

    file = _file(session)
    folder = existing_folder(cwd)
    environment = inherited(os.environ, session.settings.env_allowlist) | variables(env, os.environ)
    rules = file.read()
    judged = None if rules is None else judge(rules_of(rules), words, environment, folder)
    refused = None if judged is None else judged.refusal
    if session.json:
        answer = {
            "schema": "policy_check.v1",
            "allowed": refused is None,
            "rule": refused and refused.rule,
            "why": refused and refused.why,
            "program": judged and judged.program and judged.program.file,
            "policy": str(file.path),
        }
        session.emit(answer)
    elif refused is not None:
        session.line(f"refused: {render.printable(refused.why)}")
        session.line(f"by `{render.printable(refused.rule)}` in {file.path}")
    else:
        session.line("allowed" if rules is not None else f"allowed: there is no {file.path}")
    return 0 if refused is None else 1


@policy.command(name="show", cls=Command)
@pass_session
def policy_show(session: Session) -> None:
    """Show the rules, and which programs and folders they mean now."""
    from semtask.host.command_policy import rules_of

    file = _file(session)
    found = file.read()
    rules = None if found is None else rules_of(found)
    if session.json:
        answer: Mapping[str, Any] = {
            "schema": "policy.v1",
            "path": str(file.path),
            "exists": found is not None,
            "directories": None if rules is None or rules.directories is None else list(rules.directories),
            "allow": None if rules is None or rules.allow is None else [_json(rule) for rule in rules.allow],
            "deny": [] if rules is None else [_json(rule) for rule in rules.deny],
            "search_path": None if found is None else found.path,
        }
        session.emit(answer)
        return
    if found is None or rules is None:
        session.line(f"every command may run: there is no {file.path}")
        return
    session.line(f"policy: {file.path}")
    if rules.directories is not None:
        session.line("only in: " + render.printable(", ".join(rules.directories) or "no folder at all"))
    rows = [("deny", *_row(rule)) for rule in rules.deny] + [("allow", *_row(rule)) for rule in rules.allow or ()]
    for line in render.table(("RULE", "BEGINS WITH", "PROGRAM"), rows):
        session.line(line)
    if rules.allow is None:
        session.line("what is not denied is allowed")


def _file(session: Session) -> PolicyFile:
    from semtask.host.command_policy import PolicyFile

    settings = session.settings
    return PolicyFile(settings.command_policy_file, must=settings.command_policy is not None)


def _row(rule: Rule) -> tuple[str, str]:
    import shlex

    return render.printable(shlex.join(rule.words)), rule.program.file if rule.program else "(not found)"


def _json(rule: Rule) -> dict[str, Any]:
    return {"words": list(rule.words), "program": rule.program.file if rule.program else None}
