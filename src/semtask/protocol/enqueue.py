"""What is said to store a job: dev.enqueue.v1, dev.enqueue_many.v1 and the payload of a command."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from semtask.model.job import JobSpec
from semtask.model.option import bounded
from semtask.model.sandbox import LEAST_LIMITS, SandboxLevel
from semtask.model.scope import Scope
from semtask.model.state import State
from semtask.protocol.fields import AbsolutePath, Params, Result


class SandboxWish(Params):
    """A sandbox for a command. A level alone stands for one without anything else; a stronger floor of the queue wins.

    Each limit is one of every process of the command by itself, not of all of them together.
    """

    level: SandboxLevel
    read: list[AbsolutePath] = []
    write: list[AbsolutePath] = []
    network: bool = False
    memory_mb: Annotated[int, Meta(ge=LEAST_LIMITS["memory_mb"], le=1 << 30)] | UnsetType = UNSET
    cpu_seconds: Annotated[int, Meta(ge=LEAST_LIMITS["cpu_seconds"], le=1 << 30)] | UnsetType = UNSET
    open_files: Annotated[int, Meta(ge=LEAST_LIMITS["open_files"], le=1 << 20)] | UnsetType = UNSET
    file_mb: Annotated[int, Meta(ge=LEAST_LIMITS["file_mb"], le=1 << 30)] | UnsetType = UNSET

    @property
    def limits(self) -> dict[str, int]:
        """Those that are set, by name."""
        return {name: value for name in LEAST_LIMITS if (value := getattr(self, name)) is not UNSET}


LimitName = Literal["as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "rss", "stack"]


class CommandPayload(Params):
    """The payload of a SUBPROCESS job. `umask` is a number (18 is 0o022).

    `nice`, `cpus` and `limits` are set as far as the operating system lets the daemon: without privileges a command
    cannot be less nice than the daemon, nor have a soft limit above the daemon's hard one. A limit of `sandbox` wins.

    With `access` each attempt gets a token of its own in SEMANTICA_TOKEN, which may do that much at this daemon, and
    only while the attempt runs. Nobody can give more than they have.
    """

    command: Annotated[str, Meta(min_length=1)]
    args: list[str] = []
    env: dict[str, str] = {}
    working_dir: str | UnsetType = UNSET
    umask: Annotated[int, Meta(ge=0, le=0o777)] | UnsetType = UNSET
    nice: Annotated[int, Meta(ge=-20, le=19)] | UnsetType = UNSET
    cpus: Annotated[list[Annotated[int, Meta(ge=0, le=1023)]], Meta(max_length=1024)] = []
    limits: dict[LimitName, Annotated[int, Meta(ge=0, le=2**63 - 1)] | None] = {}
    stderr: Literal["merged", "split"] = "merged"
    sandbox: SandboxLevel | SandboxWish | UnsetType = UNSET
    access: list[Scope] = []


def command_of(payload: str | msgspec.Raw) -> CommandPayload:
    """The payload of a SUBPROCESS job. Raises msgspec.MsgspecError if it is none."""
    return msgspec.json.decode(payload, type=CommandPayload)


@bounded
class EnqueueParams(JobSpec, Params, frozen=True, kw_only=True, dict=True):  # type: ignore[misc]  # Params has no field that could change
    """A job to be stored. Points of time are epoch ms, durations ms; a limit that is left out is none."""

    payload: msgspec.Raw

    @property
    def command(self) -> CommandPayload:
        """The payload of a command, decoded once for all who look at it. Raises what `command_of` raises."""
        known: dict[str, CommandPayload] = self.__dict__
        if "command" not in known:
            known["command"] = command_of(self.payload)
        return known["command"]


# Parameters of a job that a later version will have, and this one refuses by name.
ENQUEUE_UNSERVED = frozenset({"conditions", "depends_on"})


class Enqueued(Result):
    """The stored job: the new one, or the one that was there already."""

    job_id: str
    state: State
    queue: str
    generation: int | None = None
    deduplicated: bool = False
    superseded: int = 0


class EnqueueManyParams(Params):
    """Jobs that are stored together, or none of them."""

    jobs: Annotated[list[EnqueueParams], Meta(min_length=1, max_length=10_000)]


class EnqueuedMany(Result):
    """The stored jobs."""

    jobs: list[Enqueued]
