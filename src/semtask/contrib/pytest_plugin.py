"""The pytest plugin: the fixtures `semantica` and `semantica_daemon`. It costs nothing where it is not used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from semtask.testing import InlineSemantica, SemanticaDaemon


@pytest.fixture
def semantica(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[InlineSemantica]:
    """semtask in this process: jobs run when the test says `run_pending()`, by a clock that it moves."""
    from semtask.testing import inline

    home = tmp_path_factory.mktemp("semantica")
    # What asks for a daemon nevertheless, such as a Client, must not find that of the user.
    monkeypatch.setenv("SEMANTICA_HOME", str(home))
    monkeypatch.setenv("SEMANTICA_AUTOSTART", "off")
    monkeypatch.delenv("SEMANTICA_RPC_URL", raising=False)
    with inline(home) as engine:
        yield engine


@pytest.fixture
def semantica_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SemanticaDaemon]:
    """A real daemon: `semantica_daemon(app)` has it run the tasks of an app, in real workers."""
    from semtask.testing import private_daemon

    with private_daemon(tmp_path_factory.mktemp("semantica")) as daemon:
        yield daemon
