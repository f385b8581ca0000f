"""What is executed for a job that is a command."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from semtask.config.environment import ENV_ATTEMPT, ENV_JOB_HOME, ENV_JOB_ID
from semtask.executors.base import CommandSpec
from semtask.host.standing import NO_LIMIT, Standing
from semtask.model.job import Job
from semtask.protocol.enqueue import CommandPayload


class CommandDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a command gets that its job does not say itself.

    `home` is that of the daemon, to which a command speaks that uses semtask, unless its own environment names another.
    """

    env: Mapping[str, str]
    working_dir: str
    umask: int
    home: str


def command_spec(job: Job, payload: CommandPayload, defaults: CommandDefaults) -> CommandSpec:
    """What to execute for a claimed SUBPROCESS job."""
    assert job.claim is not None, "only a claimed job is run"
    of_job = {ENV_JOB_ID: job.job_id, ENV_ATTEMPT: job.claim.nonce, ENV_JOB_HOME: defaults.home}
    env = {**defaults.env, "SEMANTICA_HOME": defaults.home, **payload.env, **of_job}
    if job.trace_context:
        env["TRACEPARENT"] = job.trace_context
    return CommandSpec(
        job_id=job.job_id,
        claim_no=job.claim_no,
        argv=[payload.command, *payload.args],
        env=env,
        working_dir=payload.working_dir or defaults.working_dir,
        umask=defaults.umask if isinstance(payload.umask, msgspec.UnsetType) else payload.umask,
        standing=_standing(payload),
        split_stderr=payload.stderr == "split",
        grace_ms=job.grace_ms,
        nonce=job.claim.nonce,
    )


def _standing(payload: CommandPayload) -> Standing:
    return Standing(
        nice=None if isinstance(payload.nice, msgspec.UnsetType) else payload.nice,
        cpus=tuple(payload.cpus),
        limits={name: NO_LIMIT if value is None else value for name, value in payload.limits.items()},
    )
