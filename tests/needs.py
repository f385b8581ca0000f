"""What some tests need and not every machine has: they are skipped without it, or fail if it is required."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import pytest

from semtask.host import isolation


class Need(NamedTuple):
    available: bool
    without: str  # why a test is skipped, and what helps


NEEDS = {
    "bubblewrap": Need(
        isolation.bubblewrap() is not None, "bubblewrap is not installed: apt-get install bubblewrap (or your system's)"
    ),
    "django6": Need(
        importlib.util.find_spec("django.tasks") is not None,
        "Django 6 is not installed, it needs Python 3.12 or newer: make test-django PYTHON=python3.12",
    ),
}


def check(item: pytest.Item) -> None:
    """Skip the test, or let it fail, if something that its `needs` marks name is missing."""
    required = item.config.getoption("--require")
    for mark in item.iter_markers("needs"):
        (name,) = mark.args
        if NEEDS[name].available:
            continue
        if name in required:
            pytest.fail(f"--require={name}: {NEEDS[name].without}", pytrace=False)
        pytest.skip(NEEDS[name].without)
