"""`dev`: one app in the foreground, imported again whenever its code changes."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from semtask.cli import job_feed, render
from semtask.cli.apps import app_json, app_options, forget, headline, register, wanted_app
from semtask.cli.arguments import now_ms
from semtask.cli.server import stop_daemon
from semtask.cli.session import Command, Session, pass_session
from semtask.cli.watch import Watch
from semtask.client.messages import LIST_APPS, LIST_TASKS, RELOAD_APPS, STATS
from semtask.client.patience import send_patiently
from semtask.errors import Conflict

if TYPE_CHECKING:
    from semtask.client.transport import Transport
    from semtask.model.app import App
    from semtask.protocol.apps import AppView

_TICK_MS = 500
_PAUSE_S = 0.1
_DATE = re.compile(r"^\d{4}-\d\d-\d\dT(?=\d\d:\d\d:\d\d\.\d{3}Z )", re.ASCII)  # all of it happens today


@click.command(cls=Command)
@click.argument("module", metavar="PACKAGE.MODULE:APP")
@app_options
@pass_session
def dev(session: Session, /, module: str, **place: str | None) -> None:
    """Run an app in the foreground, print what its jobs do, and import it again when its code changes.

    Uses the daemon of this home, or starts one for as long as it runs. Ctrl-C ends it, and the daemon that it started;
    a second Ctrl-C stops the running jobs of that daemon immediately. SIGTERM and a closed terminal end it, too.
    """
    wanted = wanted_app(session, module, **place)
    try:
        with _signals(), _daemon(session) as transport, _registered(session, transport, wanted) as app:
            _Screen(session, transport, wanted, app).run()
    except KeyboardInterrupt:
        session.notice("ended")


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM, and the end of the terminal, end it as Ctrl-C does."""
    ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = [(number, signal.signal(number, _interrupt)) for number in ours]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _daemon(session: Session) -> Iterator[Transport]:
    """The daemon of the home; one that was started here is stopped at the end, immediately after a second Ctrl-C."""
    transport = session.connect(start=True)
    pid = transport.send(STATS()).pid
    ours = _is_child(pid)
    try:
        yield transport
    finally:
        if ours:
            _stop(session, transport, pid)


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _stop(session: Session, transport: Transport, pid: int) -> None:
    session.notice("stopping the daemon; Ctrl-C stops running jobs immediately")
    try:
        stop_daemon(session, transport, pid, now=False)
    except KeyboardInterrupt:
        stop_daemon(session, transport, pid, now=True)


@contextmanager
def _registered(session: Session, transport: Transport, wanted: App) -> Iterator[AppView]:
    """The state of the app, which is in the list for this time, or stays there if it was before."""
    from semtask.host.app_list import read_apps

    before = next((app for app in read_apps(session.settings) if app.name == wanted.name), None)
    if before is not None and before != wanted:
        raise Conflict(
            f"there is another app named {wanted.name!r} ({before.module} in {before.directory}); add --name"
        )
    try:
        yield register(session, transport, wanted)
    finally:
        if before is None and any(app.name == wanted.name for app in read_apps(session.settings)):
            forget(session, wanted.name)


class _Screen:
    """Prints what happens until it is interrupted."""

    def __init__(self, session: Session, transport: Transport, wanted: App, app: AppView) -> None:
        self._session = session
        self._transport = transport
        self._name = wanted.name
        self._watch = Watch(wanted.directory)
        self._feed = job_feed.JobFeed(transport, frozenset(), now_ms)
        session.notice(f"{wanted.module} in {wanted.directory}, watched for changes; Ctrl-C ends this")
        if self._watch.full:
            session.notice(f"there are more than {self._watch.max_files} files; some of them are not watched")
        self._importing = self._tell_app(app)

    def run(self) -> None:
        while True:
            begin = time.monotonic()
            if changed := self._watch.changed():
                self._reload(changed)
            if self._importing:
                self._importing = self._tell_app(self._app())
            for event in self._feed.events(_TICK_MS):
                self._tell(event)
            # A daemon is asked a few times a second, whether jobs come slowly or fast.
            left = (_TICK_MS / 1000 if not self._feed.busy else _PAUSE_S) - (time.monotonic() - begin)
            time.sleep(max(left, 0))

    def _reload(self, changed: list[str]) -> None:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        self._say({"event": "changed", "files": changed}, f"{changed[0]}{more} changed: importing {self._name} again")
        send_patiently(self._transport.send, RELOAD_APPS(app=self._name))
        self._importing = True

    def _app(self) -> AppView:
        for app in send_patiently(self._transport.send, LIST_APPS()).apps:
            if app.name == self._name:
                return app
        raise Conflict(f"the app {self._name!r} was removed")

    def _tell_app(self, app: AppView) -> bool:
        """Whether it is still being imported."""
        if app.state == "starting":
            return True
        text = headline(app)
        if app.state == "ready":
            tasks = send_patiently(self._transport.send, LIST_TASKS()).tasks
            self._feed.tasks = frozenset(task.name for task in tasks if task.app == self._name)
            text += f" ({', '.join(sorted(self._feed.tasks))})" if self._feed.tasks else ""
            text += "".join(f"\nnot offered: {reason}" for reason in (app.refused or {}).values())
        else:
            text = "\n".join([*(app.traceback or "").rstrip().split("\n"), text]).lstrip("\n")
        self._say({"event": "app", "app": app_json(app)}, text)
        return False

    def _tell(self, event: job_feed.Event) -> None:
        job, name = event.job, render.short(event.job.job_id)
        if isinstance(event, job_feed.Line):
            fields = {"event": "line", "job_id": job.job_id, "attempt": event.attempt, "text": event.text}
            self._say(fields, f"{name} | {_DATE.sub('', event.text).expandtabs()}")
        elif isinstance(event, job_feed.Begun):
            self._say({"event": "begun", "job": render.job_json(job)}, f"{name} {render.name_of(job)} begins")
        elif isinstance(event, job_feed.AttemptEnded):
            fields = {"event": "attempt_ended", "attempt": event.attempt, "job": render.job_json(job)}
            self._say(fields, f"{name} {render.next_attempt(job, event.attempt, now_ms())}")
        else:
            said = render.sentence(job).removeprefix(name)
            text = f"{name} {render.name_of(job)}{said}"
            self._say({"event": "ended", "job": render.job_json(job)}, text, state=job.state)

    def _say(self, fields: dict[str, Any], text: str, *, state: str = "") -> None:
        session = self._session
        if session.json:
            session.emit({"schema": "dev.v1", **fields})
        elif session.quiet:
            return
        else:
            for line in text.split("\n"):
                session.line(render.paint(render.printable(line), state, colored=session.colored))
