"""What all commands share: the output that was asked for, the settings, and the way to the daemon."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from semtask.client.transport import Transport
    from semtask.config.settings import Settings
    from semtask.errors import ConfigError

TABLE, JSON, QUIET = "table", "json", "quiet"


class Session:
    """One call of the command line."""

    def __init__(self) -> None:
        self.output = ""
        self.color = "auto"
        self.flags: dict[str, Any] = {}  # settings given as options

    # --- output -----------------------------------------------------------------------------------------------------

    @property
    def json(self) -> bool:
        return self._mode == JSON

    @property
    def quiet(self) -> bool:
        return self._mode == QUIET

    @cached_property
    def _mode(self) -> str:
        mode = self.output or os.environ.get("SEMANTICA_OUTPUT") or TABLE
        if mode not in {TABLE, JSON, QUIET}:
            raise click.UsageError(f"SEMANTICA_OUTPUT must be table, json or quiet, not {mode!r}")
        return mode

    @cached_property
    def terminal(self) -> bool:
        """Whether a person reads stdout."""
        return sys.stdout.isatty()

    @cached_property
    def colored(self) -> bool:
        if self.color != "auto":
            return self.color == "always"
        if os.environ.get("NO_COLOR"):
            return False
        if os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE"):
            return True
        return self.terminal and os.environ.get("TERM") != "dumb"

    def emit(self, value: Any) -> None:
        """One JSON value on a line of its own."""
        self.line(json.dumps(value, separators=(",", ":")))

    def line(self, text: str) -> None:
        """One line of data."""
        self.write(text + "\n")

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def notice(self, text: str) -> None:
        """One line for the person, on stderr; nothing with -q."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """For the person, usually one line, that -q does not silence. Nothing in it can steer the terminal."""
        from semtask.cli.render import printable
        from semtask.cli.streams import say

        text = "\n".join(map(printable, text.split("\n")))
        sys.stdout.flush()
        say(f"semtask: {text}")

    # --- the daemon -------------------------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> Settings:
        from semtask.config.loading import load  # `semtask version` needs none

        return load(flags=self.flags)

    def forgive_broken_settings(self) -> None:
        """Warn of settings that cannot be read, and go on without them: for what must work just then.

        Raises ConfigError if that concerns the home.
        """
        from semtask.config.loading import load

        problems: list[ConfigError] = []
        self.settings = load(flags=self.flags, problems=problems)
        for problem in problems:
            self.warn(f"{problem.message} (ignored here)")

    def connect(self, *, start: bool) -> Transport:
        """A connected transport; `start`: the daemon is started where none answers."""
        from semtask.client.autostart import open_transport

        return open_transport(self.settings, autostart=start, notice=self.notice)

    @cached_property
    def daemon(self) -> Transport:
        """The daemon, started if need be: for commands that give it something to do."""
        return self.connect(start=self.settings.autostart)

    @cached_property
    def stored(self) -> Transport:
        """The daemon, started only where there is a database: for commands that look at what is there."""
        return self.connect(start=self.settings.autostart and os.path.exists(self.settings.database))


pass_session = click.make_pass_decorator(Session, ensure=True)


def _set_output(mode: str) -> Any:
    def callback(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        session = ctx.ensure_object(Session)
        if value:
            if session.output and session.output != mode:
                raise click.UsageError("--json and --quiet exclude each other", ctx)
            session.output = mode

    return callback


def _set_color(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value:
        ctx.ensure_object(Session).color = value


def _set_home(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Session).flags["home"] = value


def common_options() -> Iterable[click.Option]:
    """The options that every command has; they work before and after its name."""
    return (
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_set_output(JSON),
            help="Print JSON and nothing else.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_set_output(QUIET),
            help="Print ids only, and no messages.",
        ),
        click.Option(
            ["--color"],
            type=click.Choice(["auto", "always", "never"]),
            expose_value=False,
            callback=_set_color,
            help="When to use colour.",
        ),
        click.Option(
            ["--home"], metavar="DIR", expose_value=False, callback=_set_home, help="The home (SEMANTICA_HOME)."
        ),
    )


class Command(click.Command):
    """A command with the options that every command has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common_options()


class CommandGroup(click.Group):
    """A group of commands with the options that every command has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common_options()
