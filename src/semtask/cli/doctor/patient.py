"""What `doctor` looks at, and what it may find."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from semtask.client.address import NotRunning, address_of
from semtask.client.messages import STATS
from semtask.client.transport import Transport
from semtask.config.settings import Settings
from semtask.errors import SemtaskError

if TYPE_CHECKING:
    from semtask.protocol.admin import Stats

OK, WARN, FAIL = "ok", "warn", "fail"
PATIENCE_S = 3.0


class Finding(NamedTuple):
    name: str
    verdict: str
    text: str
    fix: str | None = None


class Patient:
    """The home that is looked at, and its daemon if one answers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def stats(self) -> Stats | None:
        """What the daemon says; None if there is none. Raises SemtaskError if it does not answer as it should."""
        if isinstance(self._answer, SemtaskError):
            raise self._answer
        return self._answer

    @property
    def pid(self) -> int | None:
        """The daemon's, if it answers."""
        return None if self._answer is None or isinstance(self._answer, SemtaskError) else self._answer.pid

    @cached_property
    def _answer(self) -> Stats | SemtaskError | None:
        """Asked once: a daemon that hangs is not waited for by every check."""
        with Transport(address_of(self.settings), notice=lambda _: None) as transport:
            try:
                return transport.send(STATS(), timeout=PATIENCE_S)
            except NotRunning:
                return None
            except SemtaskError as error:
                return error


def ok(text: str) -> Finding:
    return Finding("", OK, text)


def warn(text: str, fix: str | None = None) -> Finding:
    return Finding("", WARN, text, fix)


def fail(text: str, fix: str | None = None) -> Finding:
    return Finding("", FAIL, text, fix)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path
