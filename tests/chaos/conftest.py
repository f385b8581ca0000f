from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-rounds", type=int, default=20, help="how often the daemon is killed with -9")
    parser.addoption("--chaos-seed", type=int, default=0, help="0: drawn anew, and told when the test fails")
