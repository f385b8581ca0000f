from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.figures import tell

INPUTS = 3000
# `make chaos` asks for it by --hypothesis-profile=long.
settings.register_profile(
    "long", max_examples=INPUTS, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and "test_parsers" in report.nodeid:
        tell(f"parsers fed with {INPUTS:,} inputs each, nearly right", asked=1, got=int(report.passed))
