"""The table of kill points is whole: whoever adds a step gives it a kill point, or says here why it needs none."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any, get_args

import pytest

from semtask.executors.spawner import SpawnedShim
from semtask.launch import control, launcher, shim
from semtask.launch.folder import AttemptFolder
from semtask.protocol import frames
from semtask.store import sqlite
from semtask.worker.channel import Channel
from tests.harness.points import ANSWERS, REQUESTS, STEPS, TICKS, Step
from tests.harness.scenes import SCENES

# Functions that change nothing which outlives them, or whose before and after are those of a step.
NO_STEP = {
    "AttemptFolder": {
        *("open", "exists", "started", "record", "poisoned", "locked", "_file", "_read"),  # they only look
        *("_throw_away", "remove_unlocked"),  # as remove
    },
    "SpawnedShim": {"ended"},
    "_Attempt": {
        "run",  # as shim.run
        *("_be_nobody", "_asked", "_ended", "_is_over", "_reap", "_tell", "_daemon_is_dead"),
        "_end_stop",  # only bwrap has something to end there
    },
    "_Launcher": {
        *("_task", "_reap", "_is_shim"),
    },
    "Channel": {
        *("fileno", "has_input", "wait", "_close"),
        *("receive", "receive_now", "_read"),  # as _take
    },
}


@pytest.mark.parametrize("owner", [AttemptFolder, SpawnedShim, shim._Attempt, launcher._Launcher, Channel])
def test_every_function_is_a_step_or_none(owner: Any) -> None:
    functions = {name for name, value in vars(owner).items() if inspect.isfunction(value) and name[:2] != "__"}
    module = inspect.getmodule(owner)
    assert module is not None
    prefix = f"{module.__name__}:{owner.__name__}."
    steps = {step.target.removeprefix(prefix) for step in STEPS if step.target.startswith(prefix)}
    exempt = NO_STEP[owner.__name__]
    assert functions == steps | exempt, "give the new function a Step in tests/harness/points.py, or exempt it here"
    assert not steps & exempt


def test_every_request_to_the_writer_is_a_step() -> None:
    tree = ast.parse(inspect.getsource(sqlite))
    asking = {
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.AsyncFunctionDef | ast.FunctionDef)
        and any(isinstance(node, ast.Attribute) and node.attr == "submit" for node in ast.walk(function))
    }
    assert asking == set(TICKS)


def test_every_message_to_and_from_the_launcher_is_a_step() -> None:
    constants = {name: value.decode() for name, value in vars(control).items() if isinstance(value, bytes)}
    kinds = {value for value in constants.values() if len(value) == 1}
    # A fork that the machine refuses leaves nothing to recover from.
    assert kinds == set(REQUESTS) | set(ANSWERS) | {constants["REFUSED"]}


@pytest.mark.parametrize(
    ("union", "steps"),
    [
        (frames.ToWorker, ("daemon.send_frame", "worker.hear_frame")),
        (frames.ToDaemon, ("worker.send_frame", "daemon.hear_frame")),
    ],
)
def test_every_frame_is_a_step(union: Any, steps: tuple[str, str]) -> None:
    names = {member.__name__ for member in get_args(union)}
    labels = {label for step in STEPS if f"{step.process}.{step.name}" in steps for label in step.labels}
    # The daemon sends Run as a step of its own; Failed ends a worker that has no jobs.
    assert names == labels | ({"Failed"} if union == frames.ToDaemon else set())


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.process}.{step.name}")
def test_a_step_is_a_function_that_a_scene_reaches(step: Step) -> None:
    module, _, path = step.target.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    assert inspect.isfunction(found)
    assert step.scene in SCENES
