"""The port of an executor: it runs one attempt and says, as a value, how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from semtask.model.job import ProcessIdentity
from semtask.model.outcome import Outcome
from semtask.model.state import StopReason


class CommandSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a command attempt needs; nothing of it is looked up later.

    `env` is the whole environment, the nonce included. `grace_ms` is the time between SIGTERM and SIGKILL.
    """

    job_id: str
    claim_no: int
    argv: Sequence[str]
    env: Mapping[str, str]
    working_dir: str
    umask: int
    split_stderr: bool
    grace_ms: int
    nonce: str


class Executor(Protocol):
    async def run(self, spec: CommandSpec, on_started: Callable[[ProcessIdentity], None]) -> Outcome:
        """Run the attempt and return when every process of it is verified gone and the outcome is known.

        `on_started` is called at most once, on the event loop, with the identity of the command.
        Never raises for anything the job did; what cannot be started is an Outcome as well.
        """
        ...

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> None:
        """Ask the attempt to end. May be called again; the grace can only get shorter. Unknown ones are ignored."""
        ...


class KillFailed(Protocol):
    """Called when processes of an attempt survived SIGKILL (state D): the attempt keeps its slot until they go."""

    def __call__(self, job_id: str, claim_no: int) -> None: ...
