"""The coroutines of async jobs: marked while their code runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from types import FrameType
from typing import Any

from semtask.worker.mark import Mark
from semtask.worker.sync_runner import leave_child


class Marked(Coroutine[Any, Any, Any]):
    """A coroutine, or what looks like one, whose steps bear the mark of its job."""

    __slots__ = ("_context", "_is_over", "_label", "_mark", "_pid", "inner")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], mark: Mark, label: bytes, context: Context) -> None:
        self.inner = coroutine
        self._context = context
        self._is_over = False
        self._mark = mark
        self._label = label
        self._pid = os.getpid()

    def send(self, value: Any) -> Any:
        if self._is_over:
            raise StopIteration
        return self._step(self.inner.send, value)

    def throw(self, *error: Any) -> Any:
        if self._is_over:
            raise error[0]
        return self._step(self.inner.throw, *error)

    def close(self) -> None:
        self._step(self.inner.close)

    def end(self) -> None:
        """Let it clean up without awaiting anything; no code of it runs after that."""
        self._is_over = True
        with suppress(BaseException):  # it refuses, or its cleaning up fails
            self._context.run(self.close)

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self.inner.__await__())

    def __getattr__(self, name: str) -> Any:
        """cr_frame, cr_await and the like, for those who look at a task."""
        return getattr(self.inner, name)

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
