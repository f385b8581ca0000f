"""A real daemon for tests: what the fixture `semantica_daemon` gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from semtask.client.client import Client
from semtask.sdk.app import Semantica
from semtask.sdk.private_daemon import PrivateDaemon
from semtask.sdk.whereabouts import app_of


class SemanticaDaemon:
    """Call it with an app: its tasks are run by real workers, and it speaks to this daemon, until the end of the test.

    `home` is the folder of the daemon, `client` a connection to it.
    """

    def __init__(self, daemon: PrivateDaemon, entered: ExitStack) -> None:
        self._daemon = daemon
        self._entered = entered
        self.home: Path = daemon.home
        self.client: Client = entered.enter_context(daemon.client())

    @property
    def pid(self) -> int:
        return self._daemon.pid

    def __call__(self, app: Semantica, *, module: str | None = None) -> Semantica:
        """Returns the app, once it is imported. `module` ("package.module:attribute") is found where it is not given.

        Raises AppFailed if it cannot be imported, ValueError if it is in no module.
        """
        self._daemon.serve(app_of(app, module))
        self._entered.enter_context(app.connected_to(self.home))
        return app


@contextmanager
def private_daemon(home: Path | None = None) -> Iterator[SemanticaDaemon]:
    """A daemon that is gone in the end, with all that it has started; for fixtures of any scope.

    `home` is kept; without one it is a temporary folder.
    """
    daemon = PrivateDaemon(home)
    with ExitStack() as entered:
        entered.callback(daemon.stop, at_once=True)
        daemon.start()
        yield SemanticaDaemon(daemon, entered)
