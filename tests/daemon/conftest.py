from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, running_daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon in a fresh home. After the test no process of that home may be left."""
    with running_daemon(tmp_path / "home", SEMANTICA_MAX_PROCESSES="8") as running:
        yield running
