"""Events of the interpreter that a worker wants to hear of, without looking for them after each job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

PROCESS_STARTS = (
    *("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.spawn", "os.exec", "pty.spawn"),
)
ENVIRONMENT_CHANGES = ("os.putenv", "os.unsetenv")
LIMIT_CHANGES = ("resource.setrlimit", "resource.prlimit")


class Audit:
    """One hook for all: it is called for every file that a task opens, and cannot be taken off again."""

    def __init__(self) -> None:
        self._calls: dict[str, Callable[[], None]] = {}
        sys.addaudithook(self._heard)

    def on(self, events: Iterable[str], call: Callable[[], None]) -> None:
        """`call` must not raise: that would fail what the task does."""
        self._calls.update(dict.fromkeys(events, call))

    def _heard(self, event: str, _args: object) -> None:
        call = self._calls.get(event)
        if call is not None:
            call()
