"""`app.embedded()`: a daemon for the life of a script or a notebook."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from semtask.sdk.private_daemon import AppFailed, PrivateDaemon
from semtask.sdk.whereabouts import LocalApp, app_of, require_no_worker


class Embedded:
    """A private daemon that runs the tasks of one app, and to which that app speaks meanwhile.

    A context manager; in a notebook call `start()` and `stop()`. `home` is its folder.
    """

    def __init__(self, app: LocalApp, path: str | os.PathLike[str] | None, module: str | None) -> None:
        self._app = app
        self._path = path
        self._module = module
        self._daemon: PrivateDaemon | None = None
        self._entered = ExitStack()

    def __repr__(self) -> str:
        return f"<embedded daemon in {self.home}>" if self._daemon else "<embedded daemon, not running>"

    @property
    def home(self) -> Path:
        """Raises RuntimeError unless it runs."""
        return self._running.home

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def _running(self) -> PrivateDaemon:
        if self._daemon is None:
            raise RuntimeError("the embedded daemon does not run")
        return self._daemon

    def start(self) -> Self:
        """Start the daemon and wait until it has imported the app.

        Raises AppFailed if that fails, ValueError if it is not known what to import, StartupError if another daemon
        has the folder.
        """
        if self._daemon is not None:
            raise RuntimeError("the embedded daemon runs already")
        require_no_worker()
        app = app_of(self._app, self._module)
        daemon = PrivateDaemon(self._path)
        try:
            daemon.start()
            _require_all(self._app, app.module, daemon.serve(app))
        except BaseException:
            daemon.stop(at_once=True)
            raise
        self._daemon = daemon
        self._entered.enter_context(self._app.connected_to(daemon.home))
        return self

    def stop(self, *, at_once: bool = False) -> None:
        """End the daemon. Running jobs may go on for `shutdown_grace_ms`, unless `at_once` or nothing is kept anyway.

        In a folder that is kept, jobs that have not ended go on at the next start.
        """
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            self._entered.close()
            daemon.stop(at_once=at_once or self._path is None)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(at_once=error is not None)


def _require_all(semantica: LocalApp, module: str, offered: list[str]) -> None:
    missing = [definition.name for definition in semantica.registry if definition.name not in offered]
    if missing:
        raise AppFailed(
            f"a worker that imports {module} does not get the tasks {', '.join(missing)}; name the module that imports "
            "them all: app.embedded(module='package.module:app')"
        )
