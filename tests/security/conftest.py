from __future__ import annotations

from tests.api.conftest import home, server, shared

__all__ = ["home", "server", "shared"]
