"""What is said about queues: queues.*."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from semtask.model.job import QueueClass
from semtask.model.sandbox import SandboxLevel
from semtask.protocol.fields import Params, QueueName, Result


class QueueParams(Params):
    """Which queue. One that was never used is made."""

    queue: QueueName


class ConfigureQueueParams(Params):
    """`concurrency` None returns to the daemon's default.

    A queue of class `background` waits while the machine is busy. `sandbox` is the least that its commands run in;
    above `none` it takes no tasks.
    """

    queue: QueueName
    concurrency: Annotated[int, Meta(ge=1, le=100000)] | UnsetType | None = UNSET
    class_: QueueClass | UnsetType = msgspec.field(default=UNSET, name="class")
    sandbox: SandboxLevel | UnsetType = UNSET


class QueueView(Result):
    """A queue with its settings, and how many jobs of it are stored, by state."""

    name: str
    paused: bool
    concurrency: int
    class_: QueueClass = msgspec.field(name="class")
    scheduled: int
    queued: int
    running: int
    done: int
    failed: int
    cancelled: int
    superseded: int
    skipped: int
    sandbox: SandboxLevel = SandboxLevel.NONE


class Queues(Result):
    """All queues that were used or configured."""

    queues: list[QueueView]
