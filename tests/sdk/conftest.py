from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from semtask import Semantica
from tests.daemon.rig import Daemon, running_daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without apps, shared by the tests of a module: jobs of tasks stay QUEUED in it."""
    with running_daemon(tmp_path_factory.mktemp("sdk") / "home", SEMANTICA_MAX_PROCESSES="8") as running:
        yield running


@pytest.fixture
def app(daemon: Daemon) -> Iterator[Semantica]:
    app = app_of(daemon.home)
    yield app
    app.close()


def app_of(home: Path) -> Semantica:
    return Semantica(home=home, autostart=False)
