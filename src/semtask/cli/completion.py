"""`completion`: what makes a shell complete our commands, options, jobs, queues, tags, apps and tasks."""

from __future__ import annotations

import os
from pathlib import Path

import click

from semtask.cli.session import Command, Session, pass_session

VARIABLE = "_SEMTASK_COMPLETE"


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--install", is_flag=True, help="Install it where the shell looks for it, instead of printing it.")
@pass_session
def completion(session: Session, shell: str, install: bool) -> None:
    """Print the script that completes commands, options, job ids, queues, tags, apps and tasks.

    \b
    bash   semtask completion bash --install
    zsh    semtask completion zsh --install
    fish   semtask completion fish --install
    """
    script = _script(shell)
    if not install:
        if session.json:
            session.emit({"schema": "completion.v1", "shell": shell, "script": script})
        else:
            session.line(script)
        return
    path, hint = _place(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(script + "\n", encoding="utf-8")
    draft.replace(path)
    if session.json:
        session.emit({"schema": "completion.v1", "shell": shell, "path": str(path)})
    else:
        session.line(str(path))
        session.notice(hint)


def _script(shell: str) -> str:
    from click.shell_completion import get_completion_class

    from semtask.cli.main import cli

    completer = get_completion_class(shell)
    assert completer is not None
    # The text of the script alone: `source()` would start a shell to look at its version.
    instance = completer(cli, {}, "semtask", VARIABLE)
    return (instance.source_template % instance.source_vars()).strip()


def _place(shell: str) -> tuple[Path, str]:
    """The file, and what else is to be done."""
    new = "it works in new shells"
    if shell == "fish":
        return _folder("XDG_CONFIG_HOME", ".config") / "fish" / "completions" / "semtask.fish", new
    if shell == "zsh":
        folder = _folder("XDG_DATA_HOME", ".local/share") / "zsh" / "site-functions"
        return folder / "_semtask", f"{new} if ~/.zshrc has `fpath+=({folder})` before `compinit`"
    folder = _folder("XDG_DATA_HOME", ".local/share") / "bash-completion" / "completions"
    return folder / "semtask", f"{new} if the package bash-completion is installed"


def _folder(variable: str, below_home: str) -> Path:
    given = os.environ.get(variable, "")
    return Path(given) if os.path.isabs(given) else Path.home() / below_home
