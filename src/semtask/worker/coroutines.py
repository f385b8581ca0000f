"""The coroutines of async jobs: marked while their code runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import Any

from semtask.worker.mark import Mark
from semtask.worker.sync_runner import leave_child


class Marked(Coroutine[Any, Any, Any]):
    """A coroutine, or what looks like one, whose steps bear the mark of its job."""

    __slots__ = ("_coroutine", "_label", "_mark", "_pid")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], mark: Mark, label: bytes) -> None:
        self._coroutine = coroutine
        self._mark = mark
        self._label = label
        self._pid = os.getpid()

    def send(self, value: Any) -> Any:
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        self._step(self._coroutine.close)

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._coroutine.__await__())

    def __getattr__(self, name: str) -> Any:
        """cr_frame, cr_await and the like, for those who look at a task."""
        return getattr(self._coroutine, name)

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        mark = self._mark
        before = mark.now
        mark.set(self._label)
        error: BaseException | None = None
        try:
            return step(*args)
        except StopIteration:  # it returns
            raise
        except BaseException as raised:
            error = raised
            raise
        finally:
            mark.set(before)
            if os.getpid() != self._pid:
                leave_child(error)


def frames_of(coroutine: Any) -> list[FrameType]:
    """The frames of a suspended coroutine, outermost first, through all that it awaits."""
    frames: list[FrameType] = []
    at = coroutine
    while at is not None and len(frames) < 100:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(at, f"{kind}_frame", None)
            if frame is not None:
                frames.append(frame)
                at = getattr(at, f"{kind}_yieldfrom" if kind == "gi" else f"{kind}_await", None)
                break
        else:
            return frames
    return frames
