"""What `doctor` looks at of the apps."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from semtask import __version__
from semtask.cli.doctor.patient import PATIENCE_S, Finding, Patient, fail, ok, warn
from semtask.client.address import address_of
from semtask.client.messages import LIST_APPS
from semtask.client.transport import Transport
from semtask.host.app_list import read_apps
from semtask.model.app import App
from semtask.protocol.frames import PROTOCOL

if TYPE_CHECKING:
    from semtask.protocol.apps import AppView

_INTERPRETER_S = 10.0


def apps(patient: Patient) -> Iterator[Finding]:
    """Whether each app can be imported, and has an interpreter that speaks with this daemon."""
    listed = read_apps(patient.settings)
    if not listed:
        yield ok("none; `semtask apps add` adds one")
    known = {app.name: app for app in _imported(patient)}
    for app in listed:
        problem = _interpreter_problem(app)
        state = known.get(app.name)
        if problem is not None:
            yield problem
        elif state and state.state == "failed":
            yield fail(f"{app.name}: {state.error}", f"`semtask apps show {app.name}` has the traceback")
        elif state and state.refused:
            for reason in state.refused.values():
                yield warn(f"{app.name} does not offer one of its tasks: {reason}", "change the annotation")
        elif state and state.state == "ready":
            yield ok(f"{app.name}: {state.tasks} tasks, run by {app.python}")
        elif patient.pid is not None and not state:
            yield warn(f"{app.name}: the daemon does not know it yet", f"semtask apps reload {app.name}")
        else:
            yield ok(f"{app.name}: not imported yet")


def _imported(patient: Patient) -> list[AppView]:
    """What the daemon says of its apps; nothing without one."""
    if patient.pid is None:
        return []
    with Transport(address_of(patient.settings), notice=lambda _: None) as transport:
        return transport.send(LIST_APPS(), timeout=PATIENCE_S).apps


def _interpreter_problem(app: App) -> Finding | None:
    """Why its workers could not start; None if they can."""
    import subprocess

    another = f"semtask apps add {app.module} --name {app.name} --cwd {shlex.quote(app.directory)} --python PATH"
    install = f"{app.python} -m pip install semtask=={__version__}"
    code = "import semtask, semtask.protocol.frames as f; print(f.PROTOCOL, semtask.__version__)"
    try:
        done = subprocess.run(
            [app.python, "-c", code],
            cwd=app.directory,
            capture_output=True,
            text=True,
            timeout=_INTERPRETER_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        return fail(f"{app.name}: {error.filename or app.python} cannot be used: {error.strerror}", another)
    except subprocess.TimeoutExpired:
        return fail(f"{app.name}: {app.python} did not start within {_INTERPRETER_S:g} s", another)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return fail(f"{app.name}: {app.python} has no semtask that can be used ({last})", install)
    protocol, _, version = done.stdout.strip().partition(" ")
    if protocol != str(PROTOCOL):
        theirs = f"semtask {version}, whose workers speak another protocol than this one, {__version__}"
        return fail(f"{app.name}: {app.python} has {theirs}", install)
    return None
