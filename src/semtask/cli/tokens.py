"""`token`: who else may use the daemon, and for what. It needs no daemon; a running one sees the change immediately."""

from __future__ import annotations

from typing import Any

import click

from semtask.cli import render
from semtask.cli.arguments import limit, now_ms
from semtask.cli.session import Command, CommandGroup, Session, pass_session
from semtask.model.scope import Scope


@click.group(cls=CommandGroup)
def token() -> None:
    """Give others access to the daemon, and take it back."""


@token.command(name="ls", cls=Command)
@pass_session
def token_ls(session: Session) -> None:
    """List the tokens by name; what they are is stored nowhere."""
    from semtask.host.tokens import read_tokens

    tokens = read_tokens(session.settings.home)
    now = now_ms()
    if session.json:
        for name in sorted(tokens):
            session.emit(_json(name, tokens[name]))
    elif session.quiet:
        for name in sorted(tokens):
            session.line(name)
    elif not tokens:
        session.notice("there are no tokens; `semtask token add NAME --scope read` makes one")
    else:
        rows = [
            (name, ",".join(one.scopes), render.ago(one.created_at, now), _expiry(one.expires_at, now))
            for name, one in sorted(tokens.items())
        ]
        for line in render.table(("NAME", "SCOPES", "MADE", "EXPIRES"), rows):
            session.line(line)


@token.command(name="add", cls=Command)
@click.argument("name")
@click.option(
    "-s",
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    required=True,
    help="What it may do; may be given several times.",
)
@click.option("--expires", type=limit, metavar="TIME", help="How long it is valid, like 7d. Default: forever.")
@pass_session
def token_add(session: Session, /, name: str, scopes: tuple[str, ...], expires: int | None) -> None:
    """Make a token and print it, once.

    \b
    read     look at jobs with their payloads, results and logs, at queues and figures
    enqueue  enqueue tasks, and cancel jobs
    command  the same, and have any program run as you
    admin    everything
    """
    from semtask.host.tokens import add_token

    now = round(now_ms())
    secret = add_token(
        session.settings.home, name, map(Scope, scopes), now_ms=now, expires_at=expires and now + expires
    )
    _tell(session, name, secret)


@token.command(name="rotate", cls=Command)
@click.argument("name")
@click.option("--expires", type=limit, metavar="TIME", help="How long the new one is valid. Default: forever.")
@pass_session
def token_rotate(session: Session, /, name: str, expires: int | None) -> None:
    """Put a new token in the place of one, with its scopes, and print it. The old one opens nothing any more."""
    from semtask.host.tokens import rotate_token

    now = round(now_ms())
    secret = rotate_token(session.settings.home, name, now_ms=now, expires_at=expires and now + expires)
    _tell(session, name, secret)


@token.command(name="rm", cls=Command)
@click.argument("name")
@pass_session
def token_rm(session: Session, /, name: str) -> None:
    """Remove a token. It opens nothing any more."""
    from semtask.host.tokens import remove_token

    remove_token(session.settings.home, name)
    if session.json:
        session.emit({"schema": "token_removed.v1", "name": name})
    else:
        session.notice(f"the token {name} opens nothing any more")


def _tell(session: Session, name: str, secret: str) -> None:
    """The token on stdout, and only there."""
    from semtask.host.tokens import read_tokens

    if session.json:
        session.emit({**_json(name, read_tokens(session.settings.home)[name]), "token": secret})
        return
    session.line(secret)
    session.notice(f"this is the token {name}; it is not shown again. A client reads it from SEMANTICA_TOKEN_FILE")


def _json(name: str, one: Any) -> dict[str, Any]:
    expires = None if one.expires_at is None else render.iso(one.expires_at)
    return {
        "schema": "token.v1",
        "name": name,
        "scopes": list(one.scopes),
        "created_at": render.iso(one.created_at),
        "expires_at": expires,
    }


def _expiry(expires_at: int | None, now: float) -> str:
    if expires_at is None:
        return "never"
    return render.ago(expires_at, now) if expires_at > now else f"expired {render.ago(expires_at, now)}"
