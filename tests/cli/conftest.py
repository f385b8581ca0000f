from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.rig import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A home without a daemon. Whatever the test starts there is stopped after it."""
    running = Shell(tmp_path / "home", SEMANTICA_MAX_PROCESSES="8")
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A home with a daemon that the tests of a module share; they leave it running."""
    running = Shell(tmp_path_factory.mktemp("served") / "home", SEMANTICA_MAX_PROCESSES="8")
    try:
        up = running("up")
        assert up.code == 0, up
        yield running
    finally:
        running.stop()
