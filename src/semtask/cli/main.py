"""The entry point: finds the command, runs it, and turns every error into one line and an exit code.

Only `click` is imported before the command is known; each command's module is imported when it is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from semtask import __version__
from semtask.cli.session import JSON, Session, common_options

if TYPE_CHECKING:
    from semtask.cli.failure import Failure

# command -> (module, the line that `semtask --help` shows)
COMMANDS = {
    "run": ("submit", "Run a command as a durable job."),
    "enqueue": ("submit", "Enqueue a Python task."),
    "ls": ("look", "List jobs."),
    "show": ("show", "Show one job."),
    "logs": ("logs", "Print or follow the output of a job, or the daemon's log."),
    "wait": ("look", "Wait for jobs to end."),
    "result": ("results", "Print the result of a task."),
    "artifacts": ("results", "List and fetch the files that a job left."),
    "cancel": ("change", "Cancel jobs."),
    "retry": ("change", "Enqueue finished jobs again."),
    "queues": ("queues", "List queues and set their limits."),
    "pause": ("queues", "Start no more jobs of queues."),
    "resume": ("queues", "Start jobs of paused queues again."),
    "apps": ("apps", "List apps, or change the list."),
    "tasks": ("tasks", "List the registered Python tasks."),
    "workers": ("tasks", "List the processes that run tasks."),
    "dev": ("dev", "Run an app in the foreground, and again when its code changes."),
    "up": ("server", "Start the daemon."),
    "down": ("server", "Stop the daemon."),
    "status": ("server", "Show the daemon and its queues."),
    "daemon": ("server", "Run the daemon in the foreground."),
    "install-service": ("service", "Write the units that run the daemon under systemd."),
    "uninstall-service": ("service", "Remove the systemd units."),
    "doctor": ("doctor.command", "Look for problems and say what to do."),
    "gc": ("upkeep", "Delete what is over its retention."),
    "db": ("upkeep", "Check, back up, restore and migrate the database."),
    "token": ("tokens", "Create, list and revoke access tokens."),
    "policy": ("policy", "Show which commands may run, and check one."),
    "config": ("about", "Show and check the settings."),
    "completion": ("completion", "Let the shell complete commands, jobs and queues."),
    "version": ("about", "Print the version."),
}


class LazyGroup(click.Group):
    """Imports the module of a command when the command is used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common_options()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature, as below
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"semtask.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="semtask", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Durable background work on this machine, without a broker.

    \b
    semtask run -- make test      run a command as a durable job
    semtask run -d -- ./index.sh  the same in the background
    semtask logs -f last          follow its output
    """
    ctx.ensure_object(Session)
    if ctx.invoked_subcommand is None:
        if not sys.stdout.isatty():
            click.echo(ctx.get_help())
            return
        status = cli.get_command(ctx, "status")
        assert status is not None
        ctx.invoke(status)


def main() -> NoReturn:
    """Run the command line and exit."""
    _open_standard_streams()
    session = Session()
    try:
        _require_utf8(sys.argv[1:])
        if "_SEMTASK_COMPLETE" in os.environ:  # set by the scripts of `semtask completion`
            _complete()
        # Not by cli.main: it has ideas of its own on broken pipes.
        with cli.make_context("semtask", sys.argv[1:], obj=session) as context:
            result = cli.invoke(context)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except BrokenPipeError:
        code = _quiet_broken_pipe()
    except BaseException as error:  # noqa: BLE001 - every error becomes one line here
        code = _report_safely(error, session)
    sys.exit(code)


def _complete() -> NoReturn:
    """Offer what fits the word that is being typed. A message would only be in the way there."""
    try:
        cli.main(prog_name="semtask")
    except Exception:  # noqa: BLE001 - as the docstring says
        sys.exit(1)


def _open_standard_streams() -> None:
    """Descriptors 0 to 2 must be taken, or a socket would get the number, and the output, of a closed one."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _report_safely(error: BaseException, session: Session) -> int:
    from semtask.cli.failure import describe, report

    if os.environ.get("SEMANTICA_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    failure = describe(error)
    try:
        return report(failure, as_json=_wants_json(session))
    except BrokenPipeError:
        return _quiet_broken_pipe()
    except OSError:
        return _report_elsewhere(failure)


def _report_elsewhere(failure: Failure | int) -> int:
    """stdout takes nothing: its disk is full, or its terminal has hung up. What is buffered for it is lost."""
    from semtask.cli.failure import report
    from semtask.cli.streams import let_go

    let_go(1)
    return report(failure, as_json=False)


def _wants_json(session: Session) -> bool:
    """Also where the options could not be read to their end."""
    ours = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    given = session.output or ("json" if "--json" in ours else os.environ.get("SEMANTICA_OUTPUT"))
    return given == JSON


def _require_utf8(words: list[str]) -> None:
    for number, word in enumerate(words, 1):
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise click.UsageError(
                f"argument {number} ({os.fsencode(word)!r}) is not UTF-8, and jobs are stored as JSON text; "
                "pass such bytes through a script or a file"
            ) from None


def _quiet_broken_pipe() -> int:
    """Nobody reads our output any more."""
    from semtask.cli.streams import BROKEN_PIPE, let_go_of_broken

    let_go_of_broken()
    return BROKEN_PIPE
