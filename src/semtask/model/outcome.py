"""What an executor says about an attempt. A value: what follows from it is decided in `retry.py`."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from semtask.model.sandbox import SandboxLevel
from semtask.model.state import EndCause


class FailureClass(StrEnum):
    """What kind of end an attempt had; it selects the budget and the reaction."""

    PERMANENT = "PERMANENT"  # trying again cannot help: program missing, bad payload
    HANDLER = "HANDLER"  # the job itself failed: exit code, exception, a signal that was not ours, timeout
    CRASH = "CRASH"  # the process that ran or watched it was lost
    INTERRUPTED = "INTERRUPTED"  # the daemon died or shut down
    INFRA = "INFRA"  # the machine had no room to start it
    NEVER_RAN = "NEVER_RAN"  # proved: nothing of it was executed
    DISPLACED = "DISPLACED"  # its worker was ended because of another job
    CANCEL = "CANCEL"  # the task itself asked to be cancelled
    SNOOZE = "SNOOZE"  # the task asked to run again later; costs no budget


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt ended. `failure` is None for a success; `log_bytes` is what it wrote in all.

    `stopped`: its end came after it had been told to stop, so it is not known to be a natural one. `delay_ms`: the
    task said when it wants to run again. `result`, `exception`, `artifacts` and `progress` are JSON texts of a task.
    """

    end_cause: EndCause
    failure: FailureClass | None = None
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    log_bytes: int | None = None
    stopped: bool = False
    delay_ms: int | None = None
    result: str | None = None
    exception: str | None = None
    artifacts: str | None = None
    progress: str | None = None
    sandbox: SandboxLevel | None = None

    @property
    def executed(self) -> bool:
        """Whether the attempt counts as an execution of the job."""
        return self.failure not in {FailureClass.INFRA, FailureClass.NEVER_RAN}


def success(
    *,
    exit_code: int | None = None,
    result: str | None = None,
    artifacts: str | None = None,
    progress: str | None = None,
) -> Outcome:
    return Outcome(
        end_cause=EndCause.SUCCESS, exit_code=exit_code, result=result, artifacts=artifacts, progress=progress
    )


def never_ran(why: str) -> Outcome:
    return Outcome(end_cause=EndCause.INTERRUPTED, failure=FailureClass.NEVER_RAN, error=why)


def interrupted(why: str, *, exit_code: int | None = None, signal: int | None = None) -> Outcome:
    return Outcome(
        end_cause=EndCause.INTERRUPTED,
        failure=FailureClass.INTERRUPTED,
        error=why,
        exit_code=exit_code,
        signal=signal,
    )


def spawn_failed(why: str) -> Outcome:
    """The program cannot be started and never will be: missing, not executable, arguments too long."""
    return Outcome(end_cause=EndCause.SPAWN_FAILED, failure=FailureClass.PERMANENT, error=why)


def bad_payload(why: str) -> Outcome:
    return Outcome(end_cause=EndCause.BAD_PAYLOAD, failure=FailureClass.PERMANENT, error=why)


def no_room(why: str) -> Outcome:
    """The machine could not start it now: no processes, descriptors, memory or disk left."""
    return Outcome(end_cause=EndCause.SPAWN_FAILED, failure=FailureClass.INFRA, error=why)


def lost(why: str) -> Outcome:
    """The process that watched the attempt is gone and left no record."""
    return Outcome(end_cause=EndCause.WORKER_CRASH, failure=FailureClass.CRASH, error=why)


def exception(
    error: str,
    *,
    exception: str | None = None,
    permanent: bool = False,
    delay_ms: int | None = None,
    stopped: bool = False,
) -> Outcome:
    """The task raised. `exception` is JSON text; `delay_ms` is set by a task that says when it wants to be retried."""
    return Outcome(
        end_cause=EndCause.EXCEPTION,
        failure=FailureClass.PERMANENT if permanent else FailureClass.HANDLER,
        error=error,
        exception=exception,
        delay_ms=delay_ms,
        stopped=stopped,
    )


def cancelled(why: str | None) -> Outcome:
    """The task asked to be cancelled."""
    return Outcome(end_cause=EndCause.CANCELLED, failure=FailureClass.CANCEL, error=why)


def snoozed(delay_ms: int) -> Outcome:
    """The task asked to run again after `delay_ms`. That is no failure."""
    return Outcome(end_cause=EndCause.SUCCESS, failure=FailureClass.SNOOZE, delay_ms=delay_ms)


def crash(
    why: str, *, signal: int | None = None, exit_code: int | None = None, exception: str | None = None
) -> Outcome:
    """The worker died under the task. `exception` is JSON text: where it was."""
    return Outcome(
        end_cause=EndCause.WORKER_CRASH,
        failure=FailureClass.CRASH,
        error=why,
        signal=signal,
        exit_code=exit_code,
        exception=exception,
    )


def unstorable(why: str) -> Outcome:
    """The attempt is over, but what it had to say cannot be stored."""
    return Outcome(end_cause=EndCause.EXCEPTION, failure=FailureClass.PERMANENT, error=why)


def displaced(why: str) -> Outcome:
    """The worker was killed, or died, because of another job that it ran at the same time."""
    return Outcome(end_cause=EndCause.INTERRUPTED, failure=FailureClass.DISPLACED, error=why)


def of_command(wait_status: int, *, log_bytes: int | None = None) -> Outcome:
    """The outcome of a command that ended by itself, from its wait status (as of `os.waitpid`)."""
    signal = wait_status & 0x7F
    if signal:
        return Outcome(
            end_cause=EndCause.SIGNAL,
            failure=FailureClass.HANDLER,
            signal=signal,
            error=f"ended by signal {signal}",
            log_bytes=log_bytes,
        )
    code = (wait_status >> 8) & 0xFF
    if code:
        return Outcome(
            end_cause=EndCause.EXIT_CODE,
            failure=FailureClass.HANDLER,
            exit_code=code,
            error=f"exit code {code}",
            log_bytes=log_bytes,
        )
    return Outcome(end_cause=EndCause.SUCCESS, exit_code=0, log_bytes=log_bytes)
