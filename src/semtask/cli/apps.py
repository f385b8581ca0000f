"""`apps`, and the registration of an app that `up --app` and `dev` share."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from semtask.cli import render
from semtask.cli.arguments import existing_folder
from semtask.cli.complete import app_names
from semtask.cli.failure import TRY_LATER, Ended
from semtask.cli.session import Command, CommandGroup, Session, pass_session
from semtask.client.address import NotRunning
from semtask.client.messages import LIST_APPS, RELOAD_APPS, json_of
from semtask.config.apps import app_module, app_name
from semtask.errors import Conflict, NotFound, SemtaskError

if TYPE_CHECKING:
    from semtask.client.transport import Transport
    from semtask.model.app import App
    from semtask.protocol.apps import AppView

WAIT_MS = 60_000
_COLORS = {"ready": "DONE", "starting": "RUNNING", "failed": "FAILED"}


class AppFailed(SemtaskError):
    """An app cannot be imported."""


# --- which app is meant ----------------------------------------------------------------------------------------------


def app_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What names an app besides its module, as `name`, `cwd` and `python`."""
    for option in (
        click.option(
            "--python", metavar="PATH", help="The app's interpreter, with semtask installed. Default: this one."
        ),
        click.option("--cwd", metavar="DIR", help="The folder in which it is imported and run. Default: this one."),
        click.option("-n", "--name", help="The app's name. Default: the name of its package."),
    ):
        command = option(command)
    return command


def wanted_app(session: Session, module: str, *, name: str | None, cwd: str | None, python: str | None) -> App:
    """The app that was asked for. One of the list keeps its name if it has this module and directory."""
    from semtask.host.app_list import read_apps
    from semtask.model.app import App

    try:
        module, name = app_module(module), None if name is None else app_name(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    directory = existing_folder(cwd)
    if name is None:
        name = _free_name(module, directory, read_apps(session.settings))
    return App(name=name, module=module, directory=directory, python=_interpreter(python))


def _interpreter(python: str | None) -> str:
    """Its path as it was given: the link of a virtualenv is not followed, as it tells which virtualenv it is."""
    found = shutil.which(python or sys.executable)
    if found is None:
        raise click.BadParameter(f"{python} is no program that can be executed", param_hint="--python")
    return os.path.abspath(found)


def _free_name(module: str, directory: str, known: Iterable[App]) -> str:
    """The name of the package; with that of the folder before it if another app has it already."""
    taken = {app.name: (app.module, os.path.realpath(app.directory)) for app in known}
    for name, place in taken.items():
        if place == (module, os.path.realpath(directory)):
            return name
    package = re.sub(r"[^A-Za-z0-9_-]", "_", module.partition(":")[0].partition(".")[0])
    folder = re.sub(r"[^A-Za-z0-9_-]", "_", os.path.basename(directory))
    for name in (package[:64], f"{folder}-{package}"[:64]):
        if name not in taken:
            return name
    raise click.UsageError(f"there is another app named {package!r} already; choose a name with --name")


# --- what the daemon makes of it -------------------------------------------------------------------------------------


def register(session: Session, transport: Transport, app: App) -> AppView:
    """Put the app into the list and have the daemon import it; what has become of it.

    Raises Conflict for a new app with a task that another app has; it is out of the list then.
    """
    from semtask.host.app_list import add_app, read_apps

    is_new = all(other.name != app.name for other in read_apps(session.settings))
    add_app(session.settings, app)
    found = reload(transport, app.name)[0]
    if is_new and found.conflict_with:
        forget(session, app.name)
        raise Conflict(f"app {app.name} is refused: {_error(found)}")
    return found


def reload(transport: Transport, name: str | None = None) -> list[AppView]:
    """Have the daemon read the list again and import the app, or all of them."""
    params: dict[str, Any] = {"wait_ms": WAIT_MS, **({"app": name} if name else {})}
    apps = transport.send(RELOAD_APPS(**params)).apps
    if name is None:
        return list(apps)
    return [_named(apps, name)]


def _named(apps: Iterable[AppView], name: str) -> AppView:
    for app in apps:
        if app.name == name:
            return app
    raise NotFound(f"the daemon has no app {name!r}", details={"app": name})


def tell(session: Session, app: AppView) -> None:
    """One line, or one JSON value, for an app. Raises AppFailed if it cannot be imported, Ended if it is not yet."""
    require_usable(session, app)
    if session.json:
        session.emit(app_json(app))
    elif session.quiet:
        session.line(app.name)
    else:
        session.line(headline(app))
    warn_of_refused(session, app)
    require_imported(session, app)


def require_usable(session: Session, app: AppView) -> None:
    """Raises AppFailed if it cannot be imported."""
    if app.state != "failed":
        return
    if os.environ.get("SEMANTICA_DEBUG") == "1" and app.traceback:
        session.warn(app.traceback.rstrip())
    raise AppFailed(
        f"app {app.name}: {_error(app)}{_other_interpreter(app)}; "
        f"`semtask apps show {app.name}` has the traceback, `semtask apps reload {app.name}` tries again"
    )


def warn_of_refused(session: Session, app: AppView) -> None:
    """One line for each task that the app cannot offer."""
    for reason in (app.refused or {}).values():
        session.warn(f"app {app.name} does not offer one of its tasks: {render.printable(reason)}")


def require_imported(session: Session, app: AppView) -> None:
    """Ends with exit code 75 if its import goes on."""
    if app.state == "starting":
        session.warn(f"app {app.name} is still being imported; `semtask apps` shows when it is ready")
        raise Ended(TRY_LATER)


def headline(app: AppView) -> str:
    """'app shop: 3 tasks', or why there are none."""
    return f"app {app.name}: {_error(app) if app.state == 'failed' else briefly(app)}"


def briefly(app: AppView) -> str:
    """'3 tasks', 'starting' or 'failed'."""
    return f"{app.tasks} task{'s' * (app.tasks != 1)}" if app.state == "ready" else str(app.state)


def app_json(app: AppView) -> dict[str, Any]:
    return {"schema": "app.v1", **json_of(app)}


def _error(app: AppView) -> str:
    return render.printable(app.error or "no reason is known")


def _other_interpreter(app: AppView) -> str:
    """The usual reason for a missing module: semtask is installed elsewhere than the project."""
    active = os.environ.get("VIRTUAL_ENV")
    if not active or "No module named" not in _error(app) or app.python.startswith(f"{active}/"):
        return ""
    return f" (it is run by {app.python}; for the active virtualenv add --python {active}/bin/python)"


def _running(session: Session) -> Transport | None:
    """The daemon, if it runs."""
    try:
        return session.connect(start=False)
    except NotRunning:
        return None


# --- commands --------------------------------------------------------------------------------------------------------


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.pass_context
@pass_session
def apps(session: Session, ctx: click.Context) -> None:
    """List apps, or change the list. An app is a Python module that registers tasks."""
    if ctx.invoked_subcommand is None:
        _list(session, session.stored.send(LIST_APPS()).apps)


@apps.command(name="ls", cls=Command)
@pass_session
def ls_(session: Session) -> None:
    """List apps, and whether they could be imported."""
    _list(session, session.stored.send(LIST_APPS()).apps)


@apps.command(name="show", cls=Command)
@click.argument("name", shell_complete=app_names)
@pass_session
def show_(session: Session, name: str) -> None:
    """Show one app, with the traceback if it cannot be imported."""
    app = _named(session.stored.send(LIST_APPS()).apps, name)
    if session.json:
        session.emit(app_json(app))
    elif session.quiet:
        session.line(app.name)
    else:
        for key in ("name", "state", "module", "directory", "python", "tasks", "workers", "error"):
            if (value := getattr(app, key)) is not None:
                session.line(f"{key:<9}  {render.printable(str(value))}")
        for reason in (app.refused or {}).values():
            session.line(f"{'refused':<9}  {render.printable(reason)}")
        for line in (app.traceback or "").splitlines():
            session.line(render.printable(line))


@apps.command(name="add", cls=Command)
@click.argument("module", metavar="PACKAGE.MODULE:APP")
@app_options
@pass_session
def add_(session: Session, /, module: str, **place: str | None) -> None:
    """Add an app to the list. A running daemon imports it immediately. Exit code 1 if it cannot be imported."""
    from semtask.host.app_list import add_app

    app = wanted_app(session, module, **place)
    if transport := _running(session):
        tell(session, register(session, transport, app))
        return
    changed = add_app(session.settings, app)
    if session.quiet:
        session.line(app.name)
    elif session.json:
        session.emit({"schema": "app_entry.v1", "name": app.name, "module": app.module,
                      "directory": app.directory, "python": app.python})  # fmt: skip
    else:
        session.notice(f"app {app.name} {'is added' if changed else 'was there already'}; no daemon runs to import it")


@apps.command(name="rm", cls=Command)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=app_names)
@pass_session
def rm_(session: Session, names: tuple[str, ...]) -> None:
    """Take apps from the list. Jobs of theirs that run go on; others wait until an app offers their task."""
    for name in names:
        forget(session, name)
        session.notice(f"app {name} is removed")
        if session.json:
            session.emit({"schema": "app_removed.v1", "name": name})


def forget(session: Session, name: str) -> None:
    """Take the app from the list, and from the daemon if it runs."""
    from semtask.config.loading import configured_apps
    from semtask.host.app_list import remove_app

    removed = remove_app(session.settings.home, name)
    if configured := configured_apps(session.settings).get(name):
        raise Conflict(f"the app {name!r} is defined in {configured.place}; remove it there")
    if not removed:
        raise NotFound(f"there is no app {name!r}", details={"app": name})
    if transport := _running(session):
        try:
            transport.call("apps.reload.v1", {"app": name})
        except NotFound:  # it is gone, as it should be
            return


@apps.command(name="reload", cls=Command)
@click.argument("name", required=False, shell_complete=app_names)
@pass_session
def reload_(session: Session, name: str | None) -> None:
    """Read the list again, and import the app again, or all apps: after a change of the code.

    Jobs that run end in their old workers. Exit code 1 if one cannot be imported.
    """
    failed = 0
    for app in reload(session.connect(start=False), name):
        try:
            tell(session, app)
        except AppFailed as error:
            if name is not None:
                raise
            failed += 1
            session.warn(error.message)
    if failed:
        raise Ended(1)


def _list(session: Session, listed: list[AppView]) -> None:
    if session.json:
        for app in listed:
            session.emit(app_json(app))
    elif session.quiet:
        for app in listed:
            session.line(app.name)
    else:
        for line in _lines(session, listed):
            session.line(line)


def _lines(session: Session, listed: list[AppView]) -> list[str]:
    """A table on a terminal, else tab-separated values."""
    rows = [
        [
            app.name,
            app.state,
            str(app.tasks),
            str(app.workers),
            render.printable(app.module),
            render.printable(app.directory),
            _error(app) if app.state == "failed" else "",
        ]
        for app in listed
    ]
    if not session.terminal:
        return ["\t".join(row) for row in rows]
    for row in rows:
        row[1] = render.paint(row[1], _COLORS[row[1]], colored=session.colored)
    return render.table(
        ["APP", "STATE", "TASKS", "WORKERS", "MODULE", "DIRECTORY", "ERROR"], rows, right=frozenset({2, 3})
    )
