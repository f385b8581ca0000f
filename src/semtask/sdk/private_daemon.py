"""A daemon that belongs to this process: it has a home of its own, and ends with the process at the latest."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from subprocess import Popen, TimeoutExpired

from semtask.client.autostart import start_private
from semtask.client.client import Client
from semtask.config.loading import load
from semtask.config.settings import Settings
from semtask.errors import SemtaskError
from semtask.host.app_list import add_app, read_apps, remove_app
from semtask.model.app import App, AppState
from semtask.protocol.apps import AppView

_IMPORT_MS = 60_000
_PATIENCE_S = 30.0


class AppFailed(SemtaskError):
    """An app cannot be imported by its worker, or lacks tasks there. `traceback` is that of the worker."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(f"{message}\n\nIn the worker:\n{traceback.rstrip()}" if traceback else message)
        self.traceback = traceback


class PrivateDaemon:
    """`home` is kept; without one it is a temporary folder, which goes with the daemon."""

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self._temporary = home is None
        self.home = Path(tempfile.mkdtemp(prefix="semtask-") if home is None else home).absolute()
        self._owner = os.getpid()
        self._process: Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it has been started"
        return self._process.pid

    def start(self) -> None:
        """Raises StartupError, also where another daemon has the home, and DaemonUnavailable."""
        settings = self._settings
        self._owner = os.getpid()
        # What a former program has left in the list might be gone; this one says what it has.
        for app in read_apps(settings) if self.home.is_dir() else ():
            remove_app(self.home, app.name)
        env = {name: value for name, value in os.environ.items() if name != "SEMANTICA_RPC_URL"}
        life_fd = os.pidfd_open(self._owner)
        try:
            self._process = start_private(settings, env | {"SEMANTICA_TCP": "off"}, life_fd)
        finally:
            os.close(life_fd)

    def serve(self, app: App) -> list[str]:
        """Have it run the tasks of an app, and wait until that is imported; the tasks that were found there, also those
        that cannot be offered: whoever enqueues one is told why. Raises AppFailed."""
        add_app(self._settings, app)
        with self.client() as client:
            view = _named(app.name, client.reload_apps(wait_ms=_IMPORT_MS))
            if view.state is not AppState.READY:
                raise AppFailed(view.error or f"{app.module} is not imported yet", view.traceback or "")
            return [*view.refused, *(task.name for task in client.list_tasks() if task.app == app.name)]

    def client(self) -> Client:
        return Client(self.home, "", autostart=False)

    def stop(self, *, at_once: bool) -> None:
        """End it, and wait. Running jobs may go on for `shutdown_grace_ms`, unless `at_once`.

        Does nothing in a forked child: it is not the child's.
        """
        if os.getpid() != self._owner:
            return
        process, self._process = self._process, None
        if process is not None:
            self._end(process, at_once=at_once)
        if self._temporary:
            shutil.rmtree(self.home, ignore_errors=True)

    def _end(self, process: Popen[bytes], *, at_once: bool) -> None:
        patience_s = _PATIENCE_S
        process.send_signal(signal.SIGTERM)
        if at_once:
            process.send_signal(signal.SIGTERM)
        else:
            patience_s += self._settings.shutdown_grace_ms / 1000
        try:
            process.wait(patience_s)
        except BaseException as error:  # also Ctrl-C: it is not left behind
            process.kill()
            process.wait()
            if not isinstance(error, TimeoutExpired):
                raise

    @property
    def _settings(self) -> Settings:
        """Its own, not those of the daemon that the user may have: no port, no apps of theirs."""
        flags = {"home": self.home, "db_path": self.home / "meta.db", "tcp": False, "autostart": False}
        return load(flags=flags).without_apps()


def _named(name: str, apps: list[AppView]) -> AppView:
    return next(app for app in apps if app.name == name)
