"""The least sandbox that jobs of a queue get, whatever they ask for themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import UnsetType

from semtask.errors import ValidationError
from semtask.launch.sandbox import Sandbox
from semtask.model.job import ExecutionMode, NewJob
from semtask.model.sandbox import SandboxLevel, confines, strongest
from semtask.model.scope import Scope, held
from semtask.protocol.enqueue import SandboxWish
from semtask.store.requests import QueueRow


class SandboxFloors:
    """`least` is that of the settings, for all queues; a queue can have a stronger one."""

    def __init__(self, least: SandboxLevel) -> None:
        self._least = least
        self._of_queues: dict[str, SandboxLevel] = {}

    def configure(self, row: QueueRow) -> None:
        self._of_queues[row.name] = row.sandbox

    def of(self, queue: str) -> SandboxLevel:
        return strongest(self._least, self._of_queues.get(queue, SandboxLevel.NONE))

    def sandbox_for(self, queue: str, wish: SandboxLevel | SandboxWish | UnsetType) -> Sandbox | None:
        """What a command of this queue runs in: the strongest level that job, queue or settings name."""
        asked = wish_of(wish)
        level = strongest(asked.level, self.of(queue))
        if level is SandboxLevel.NONE:
            return None
        return Sandbox(level, asked.read, asked.write, asked.network, asked.limits)

    def why_no_task(self, queue: str) -> str | None:
        """Why tasks of this queue are not run; None if they are."""
        if self.of(queue) is SandboxLevel.NONE:
            return None
        where = f"queue {queue!r}" if self._least is SandboxLevel.NONE else "every queue (the setting `sandbox`)"
        return (
            f"{where} runs nothing without a sandbox ({self.of(queue).value}), and a task has none: it shares its "
            "worker with others; use another queue, or a command"
        )

    def check(self, jobs: Sequence[NewJob]) -> None:
        """Raises ValidationError if one of them is a task that would not be run."""
        queues = {job.queue for job in jobs if job.execution_mode is ExecutionMode.IN_PROCESS}
        refused = {queue: why for queue in queues if (why := self.why_no_task(queue))}
        for index, job in enumerate(jobs) if refused else ():
            if job.execution_mode is ExecutionMode.IN_PROCESS and job.queue in refused:
                place = f"jobs[{index}]." if len(jobs) > 1 else ""
                raise ValidationError(refused[job.queue], details={"parameter": f"{place}queue"})


def why_not_together(level: SandboxLevel, access: Collection[Scope]) -> str | None:
    """Why a sandbox and the token of a job exclude each other; None if they do not."""
    if confines(level) and Scope.COMMAND in held(access):
        return (
            f"with the access `command` a job could have commands run without a sandbox, so it cannot have the "
            f"sandbox level {level.value}; take one of the two away"
        )
    return None


def wish_of(said: SandboxLevel | SandboxWish | UnsetType) -> SandboxWish:
    """What a payload says."""
    if isinstance(said, SandboxWish):
        return said
    return SandboxWish(level=SandboxLevel.NONE if isinstance(said, UnsetType) else said)
