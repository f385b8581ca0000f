from __future__ import annotations

from hypothesis import HealthCheck, settings

# `make chaos` asks for it by --hypothesis-profile=long.
settings.register_profile(
    "long", max_examples=3000, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
