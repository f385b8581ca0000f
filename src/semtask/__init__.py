"""semtask: a durable task engine for one machine. The names below are its public Python API."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semtask.client.async_client import AsyncClient
    from semtask.client.client import Client
    from semtask.errors import DaemonUnavailable
    from semtask.model.state import State
    from semtask.sdk.app import Semantica
    from semtask.sdk.failures import JobCancelled, JobError, JobExpired, JobFailed, JobSuperseded, JobTimeout
    from semtask.sdk.handle import JobHandle
    from semtask.sdk.private_daemon import AppFailed
    from semtask.sdk.results import CompletedCommand
    from semtask.sdk.task import AsyncTask, Task
    from semtask.tasks.codec import BadPayload, EncodeError
    from semtask.tasks.context import JobContext, app_scope, current_job
    from semtask.tasks.control import Cancel, Interrupted, Permanent, Retry, Snooze
    from semtask.tasks.registry import DuplicateTask

__version__ = "0.1.0"
__all__ = [
    "AppFailed",
    "AsyncClient",
    "AsyncTask",
    "BadPayload",
    "Cancel",
    "Client",
    "CompletedCommand",
    "DaemonUnavailable",
    "DuplicateTask",
    "EncodeError",
    "Interrupted",
    "JobCancelled",
    "JobContext",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobHandle",
    "JobSuperseded",
    "JobTimeout",
    "Permanent",
    "Retry",
    "Semantica",
    "Snooze",
    "State",
    "Task",
    "__version__",
    "app_scope",
    "current_job",
]

_LAZY = {
    "semtask.client.async_client": ["AsyncClient"],
    "semtask.client.client": ["Client"],
    "semtask.errors": ["DaemonUnavailable"],
    "semtask.sdk.app": ["Semantica"],
    "semtask.sdk.failures": ["JobCancelled", "JobError", "JobExpired", "JobFailed", "JobSuperseded", "JobTimeout"],
    "semtask.sdk.handle": ["JobHandle"],
    "semtask.sdk.private_daemon": ["AppFailed"],
    "semtask.sdk.results": ["CompletedCommand"],
    "semtask.sdk.task": ["AsyncTask", "Task"],
    "semtask.model.state": ["State"],
    "semtask.tasks.codec": ["BadPayload", "EncodeError"],
    "semtask.tasks.context": ["JobContext", "app_scope", "current_job"],
    "semtask.tasks.control": ["Cancel", "Interrupted", "Permanent", "Retry", "Snooze"],
    "semtask.tasks.registry": ["DuplicateTask"],
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line and the launcher must start fast.
    for module, names in _LAZY.items():
        if name in names:
            import importlib

            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'semtask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
