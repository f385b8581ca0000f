from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-kills", type=int, default=40, help="how many processes are killed with -9")
    parser.addoption("--chaos-seed", type=int, default=0, help="0: drawn anew, and told when the test fails")
    parser.addoption("--kill-points", choices=("some", "all"), default="some", help="where the named steps are killed")
