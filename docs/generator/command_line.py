"""The commands with their options, and the exit codes, from the command line's own help."""

import inspect
from collections.abc import Iterable, Iterator
from typing import cast

import click

from generator import glossary
from generator.markdown import code, compare, gaps, sentence, table
from semtask.cli import exit_codes as of_jobs
from semtask.cli import failure, main, session
from semtask.client.messages import Message
from semtask.model.state import EndCause, State
from semtask.protocol.jobs import JobView

# Ends of a job that is not FAILED, and those whose exit code depends on more than their name.
_OTHER_STATES = {EndCause.SUCCESS, EndCause.CANCELLED, EndCause.SUPERSEDED, EndCause.TTL}
_DEPENDS = {
    EndCause.EXIT_CODE: "the command's own",
    EndCause.SIGNAL: "128 + the signal",
    EndCause.SPAWN_FAILED: "127: the program is missing; 126: it is not executable; else 125",
}


def commands() -> str:
    context = click.Context(main.cli, info_name="semtask")
    overview = table(["command", ""], [(f"[`{n}`](#semtask-{n})", line) for n, (_, line) in main.COMMANDS.items()])
    found = [pair for name in main.COMMANDS for pair in _walk(name, main.cli.get_command(context, name))]
    return "\n\n".join([overview, *(_command(f"semtask {path}", command) for path, command in found)])


def common_options() -> str:
    return _options(session.common_options(), "every command")


def exit_codes() -> str:
    codes = {name: value for name, value in vars(failure).items() if name.isupper() and isinstance(value, int)}
    compare(glossary.EXIT_CODES, codes, "docs/generator/glossary.py, EXIT_CODES")
    ordered = sorted((value, sentence(glossary.EXIT_CODES.get(name, ""))) for name, value in codes.items())
    return table(["code", "meaning"], [(0, "Success."), (1, "Any other failure."), *ordered])


def _exit_code(**job: str) -> str:
    return str(of_jobs.exit_code(cast(JobView, Message(dict(job)))))


def job_exit_codes() -> str:
    ends = [s for s in State if s.value not in {"SCHEDULED", "QUEUED", "RUNNING", "FAILED"}]
    rows = [(code(state), _exit_code(state=state)) for state in ends]
    for cause in EndCause:
        if cause not in _OTHER_STATES:
            known = _DEPENDS.get(cause) or _exit_code(state=State.FAILED, end_cause=cause)
            rows.append((f"`FAILED`, {code(cause)}", known))
    return table(["end of the job", "exit code"], rows)


def _walk(path: str, command: click.Command | None) -> Iterator[tuple[str, click.Command]]:
    assert command is not None
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            yield from _walk(f"{path} {name}", inner)


def _command(path: str, command: click.Command) -> str:
    if not command.help:
        gaps.append(f"cli: nothing explains `{path}`")
    usage = " ".join([path, *command.collect_usage_pieces(click.Context(command))])
    common = {option.opts[0] for option in session.common_options()}
    own = [p for p in command.params if isinstance(p, click.Option) and not p.hidden and p.opts[0] not in common]
    explained = inspect.cleandoc(command.help or "")  # Python 3.13 does it by itself
    parts = [f"### {path}", f"```text\n{usage}\n```", *map(_paragraph, explained.split("\n\n"))]
    return "\n\n".join([*parts, _options(own, path)] if own else parts)


def _paragraph(text: str) -> str:
    if text.startswith("\b\n"):  # click's mark for lines that stay as they are
        return f"```text\n{text[2:]}\n```"
    return " ".join(text.split())


def _options(options: Iterable[click.Option], where: str) -> str:
    rows = []
    for option in options:
        if not option.help:
            gaps.append(f"cli: nothing explains {option.opts[0]} of `{where}`")
        value = "" if option.is_flag else " " + option.make_metavar(click.Context(click.Command(where)))
        default = f" Default: {option.default}." if option.show_default else ""
        rows.append((code(", ".join([*option.opts, *option.secondary_opts]) + value), (option.help or "") + default))
    return table(["option", "meaning"], rows)
