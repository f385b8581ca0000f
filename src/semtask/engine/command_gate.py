"""The user's policy for commands: asked before one is stored, and again before each of its attempts."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping

import msgspec

from semtask.engine.command_spec import CommandDefaults
from semtask.errors import ConfigError, Unauthorized
from semtask.executors.base import CommandSpec
from semtask.host.command_policy import Judged, PolicyFile, judge, rules_of
from semtask.model.command_policy import Policy, Refusal, about
from semtask.model.outcome import Outcome, never_ran, spawn_failed
from semtask.model.sandbox import SandboxLevel
from semtask.protocol.enqueue import CommandPayload

log = logging.getLogger("semtask.policy")

LOOK_AGAIN_S = 1.0


class CommandGate:
    """Lets through what the policy allows.

    While the policy cannot be used, no command is stored or claimed; `hold` is told why, and None when it can be used
    again. Nothing is lost meanwhile: only a policy that can be read ends a job.
    """

    def __init__(self, policy: PolicyFile, defaults: CommandDefaults, *, hold: Callable[[str | None], None]) -> None:
        self._policy = policy
        self._defaults = defaults
        self._hold = hold
        self._watch: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str | None:
        """Why no command is taken or started now."""
        return self._policy.problem

    def needed(self) -> None:
        """Something is about to be claimed."""
        if self._watch is None and (problem := self._policy.problem) is not None:
            log.error("no command is accepted or started: %s", problem)
            self._hold(problem)
            self._watch = asyncio.get_running_loop().create_task(self._until_usable(), name="policy watch")

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])

    async def check(self, commands: Mapping[int, CommandPayload], *, of: int) -> None:
        """Raises Unauthorized, which names the rule, if one of the new commands may not run. They are given by their
        place among the jobs of the request, of which there are `of`.
        """
        if not commands:
            return
        try:
            policy = self._policy.read()
        except ConfigError as error:
            self.needed()
            raise Unauthorized(f"no command is accepted now: {error.message}", details=self._place()) from None
        if policy is None:
            return
        refused = await asyncio.to_thread(self._first_refused, policy, commands)
        if refused is not None:
            index, why = refused
            place = f"jobs[{index}]: " if of > 1 else ""
            raise Unauthorized(f"{place}{self._told(why)}", details={**self._place(), "rule": why.rule})

    async def admit(self, spec: CommandSpec) -> CommandSpec | Outcome:
        """What may be started: the command with the very program and folder that were judged. Else how it ends."""
        try:
            policy = self._policy.read()
        except ConfigError as error:
            return never_ran(f"no command is started now: {error.message}")
        if policy is None:
            return spec
        judged = await asyncio.to_thread(_judge, policy, spec)
        if judged.refusal is not None:
            return spawn_failed(self._told(judged.refusal))
        if judged.program is None:  # found later, it would be another one than was judged
            return spawn_failed(f"there is no program {spec.argv[0]!r} that can be executed, with the PATH of the job")
        # bwrap cannot name it otherwise than by its path, and some files are many programs and go by their name.
        by_name = spec.sandbox is not None and spec.sandbox.level is SandboxLevel.BWRAP
        executable = judged.program.found if by_name else judged.program.file
        return msgspec.structs.replace(spec, executable=executable, working_dir=judged.working_dir)

    async def _until_usable(self) -> None:
        while (problem := self._policy.problem) is not None:
            self._hold(problem)
            await asyncio.sleep(LOOK_AGAIN_S)
        self._watch = None
        log.info("commands are accepted and started again")
        self._hold(None)

    def _first_refused(self, policy: Policy, commands: Mapping[int, CommandPayload]) -> tuple[int, Refusal] | None:
        defaults = self._defaults
        of_all = rules_of(policy) if len(commands) > 1 else None
        for index, payload in commands.items():
            argv, env = [payload.command, *payload.args], {**defaults.env, **payload.env}
            rules = of_all or rules_of(about(policy, argv))
            judged = judge(rules, argv, env, payload.working_dir or defaults.working_dir)
            if judged.refusal is not None:
                return index, judged.refusal
        return None

    def _told(self, refused: Refusal) -> str:
        return f"the policy does not allow this command: {refused.why} (`{refused.rule}` in {self._policy.path})"

    def _place(self) -> dict[str, str]:
        return {"policy": os.fspath(self._policy.path)}


def _judge(policy: Policy, spec: CommandSpec) -> Judged:
    return judge(rules_of(about(policy, spec.argv)), spec.argv, spec.env, spec.working_dir)
