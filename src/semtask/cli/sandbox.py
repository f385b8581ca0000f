"""The sandbox of a command: options of `run`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from semtask.model.sandbox import LEAST_LIMITS, SandboxLevel

LEVELS = [level.value for level in SandboxLevel]


def _limit(word: str) -> tuple[str, int]:
    name, _, value = word.partition("=")
    if name not in LEAST_LIMITS or not (value.isascii() and value.isdigit()):
        raise click.BadParameter(f"{word!r} is none of {', '.join(f'{known}=N' for known in LEAST_LIMITS)}")
    return name, int(value)


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--sandbox", type=click.Choice(LEVELS), help="Run it in this sandbox; fail if it is not available."),
    click.option(
        "--sandbox-read", "read", multiple=True, metavar="PATH", help="What it may read and execute in the sandbox."
    ),
    click.option(
        "--sandbox-write",
        "write",
        multiple=True,
        metavar="PATH",
        help="What it may change in the sandbox, besides --cwd.",
    ),
    click.option("--network", is_flag=True, help="Give it the network in the sandbox."),
    click.option(
        "--sandbox-limit", "limits", type=_limit, multiple=True, metavar="NAME=N", help=f"{', '.join(LEAST_LIMITS)}."
    ),
)


def sandbox_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_sandbox(options: dict[str, Any]) -> dict[str, Any]:
    """What these options, which are taken out, mean for the payload. Relative paths are those of here."""
    level, network = options.pop("sandbox"), options.pop("network")
    paths = {name: [os.path.abspath(path) for path in options.pop(name)] for name in ("read", "write")}
    more = {name: value for name, value in (*paths.items(), ("network", network)) if value}
    more |= dict(options.pop("limits"))
    if level is None:
        if more:
            raise click.UsageError("say with --sandbox which one it shall be")
        return {}
    return {"sandbox": {"level": level, **more} if more else level}
