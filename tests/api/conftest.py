from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.running import Running, running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server with both doors for tests that leave no trace in it but notes."""
    with running(tmp_path_factory.mktemp("shared") / "home", tcp=True, rpc_port=0) as server:
        yield server


@pytest.fixture
def server(shared: Running) -> Running:
    shared.operations.calls.clear()
    shared.operations.entered.clear()
    return shared


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"
