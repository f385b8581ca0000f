from __future__ import annotations

import signal

import pytest

from tests import needs

# `make test &` in a script and nohup ignore it, and so would every process that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        choices=sorted(needs.NEEDS),
        default=[],
        help="fail the tests that need this if it is missing, instead of skipping them; may be repeated",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    needs.check(item)
