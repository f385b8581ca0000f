from __future__ import annotations

import pytest

from tests.api.conftest import home, server, shared

__all__ = ["home", "server", "shared"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--flood-connections", type=int, default=0, help="how many hostile ones the long form opens")
