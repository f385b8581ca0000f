"""`config` and `version`."""

from __future__ import annotations

from typing import Any

import click

from semtask import __version__
from semtask.cli.session import Command, CommandGroup, Session, pass_session


@click.command(cls=Command)
@pass_session
def version(session: Session) -> None:
    """Print the version of this command line; `semtask status` shows the daemon's."""
    if session.json:
        session.emit({"schema": "version.v1", "version": __version__})
    else:
        session.line(__version__ if session.quiet else f"semtask {__version__}")


@click.group(name="config", cls=CommandGroup)
def config() -> None:
    """Show and check the settings."""


@config.command(cls=Command)
@click.option("--origin", is_flag=True, help="Show where each value came from.")
@pass_session
def show(session: Session, origin: bool) -> None:
    """Print every setting that is in force."""
    from semtask.config.settings import documented

    settings = session.settings
    shown = {name: _plain(getattr(settings, name)) for name, _, _ in documented()}
    sources = {name: settings.origin.get(name, "default") for name in shown}
    if session.json:
        extra = {"origin": sources} if origin else {}
        session.emit({"schema": "config.v1", "settings": shown, **extra})
        return
    width = max(map(len, shown))
    for name, value in shown.items():
        text = ",".join(value) if isinstance(value, list | dict) else "" if value is None else str(value)
        session.line(f"{name:<{width}}  {text or '-'}" + (f"  ({sources[name]})" if origin else ""))


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict):
        return value
    return value if value is None or isinstance(value, int) else str(value)


@config.command(cls=Command)
@pass_session
def validate(session: Session) -> None:
    """Check the settings. Exit code 2 if one is wrong; one without effect is a warning.

    One daemon serves all projects of its home. What only the daemon reads (max_processes, retention_days, ...) has no
    effect in the semantica.toml of a project and belongs to ~/.config/semtask/config.toml, or to config.toml in the
    home.
    """
    from semtask.config.settings import USER_FILE
    from semtask.config.unused import misplaced, unknown_environment

    settings = session.settings
    unknown = unknown_environment()
    in_vain = misplaced(settings)
    if session.json:
        session.emit(
            {
                "schema": "config_check.v1",
                "valid": True,
                "unknown_environment": [{"name": name, "problem": problem} for name, problem in unknown.items()],
                "without_effect": [{"name": name, "file": file} for name, file in in_vain.items()],
            }
        )
        return
    for name, problem in unknown.items():
        session.warn(f"{name} {problem}")
    for name, file in in_vain.items():
        session.warn(
            f"{name} in {file} has no effect: one daemon serves all projects of its home; "
            f"move it to the user file ~/.config/semtask/{USER_FILE}, or to {settings.home}/{USER_FILE}"
        )
    if not session.quiet:
        session.line(f"the settings are valid (home {settings.home})")


@config.command(cls=Command)
@pass_session
def schema(session: Session) -> None:
    """Print the JSON Schema of the settings files, for editors."""
    import json

    from semtask.config.settings import schema as schema_of_files

    session.line(json.dumps(schema_of_files(), indent=None if session.json else 2))
