"""semtask: a durable task engine for one machine. The names below are its public Python API."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semtask.client.async_client import AsyncClient
    from semtask.client.client import Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]

_LAZY = {"AsyncClient": "semtask.client.async_client", "Client": "semtask.client.client"}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line and the launcher must start at once.
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'semtask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
