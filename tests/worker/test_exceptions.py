"""What is shown of the stack of a task."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from semtask.worker import exceptions
from semtask.worker.exceptions import stack_of


def named(name: str, file: str, inside: str) -> Any:
    """A function with this name in this file, which returns what `inside`, an expression, does."""
    space: dict[str, Any] = {"sys": sys}
    exec(compile(f"def {name}(*call):\n    return {inside}", file, "exec"), space)
    return space[name]


CALLS_THE_NEXT = "call[0](*call[1:])"
OWN = str(Path(exceptions.__file__).with_name("made_up.py"))
FRAMES = {
    "starts_python": named("starts_python", "/somewhere/runpy.py", CALLS_THE_NEXT),
    "worker": named("worker", OWN, CALLS_THE_NEXT),
    "task": named("task", "/project/jobs.py", CALLS_THE_NEXT),
    "library": named("library", "/project/library.py", CALLS_THE_NEXT),
    "captures": named("captures", OWN, CALLS_THE_NEXT),
    "context": named("context", "/semtask/tasks/context.py", CALLS_THE_NEXT),
}


@pytest.mark.parametrize(
    ("stack", "shown"),
    [
        ("starts_python worker worker", []),
        ("starts_python worker task", ["task"]),
        ("starts_python worker task library", ["task", "library"]),
        ("starts_python worker task captures", ["task"]),
        ("starts_python worker task library captures context", ["task", "library"]),
    ],
)
def test_the_code_of_the_task_is_shown_and_none_of_the_worker(stack: str, shown: list[str]) -> None:
    innermost = named("innermost", OWN, "sys._getframe()")
    calls = [FRAMES[name] for name in stack.split()]
    frame: FrameType = calls[0](*calls[1:], innermost)
    assert [
        line.split()[-1] for line in stack_of(frame.f_back).splitlines() if line.strip().startswith("File")
    ] == shown
