"""From what the code of a job did - returned, raised - to the frame that says how it ended."""

from __future__ import annotations

from typing import Any

from semtask.protocol.frames import Call, End, Ended, ExceptionInfo, Setup
from semtask.tasks.artifacts import ArtifactFolder
from semtask.tasks.codec import EncodeError
from semtask.tasks.context import JobContext
from semtask.tasks.control import Cancel, Interrupted, Permanent, Retry, Snooze
from semtask.tasks.options import milliseconds
from semtask.tasks.registry import TaskDefinition
from semtask.worker.exceptions import describe

CONTROLS = (Retry, Permanent, Cancel, Snooze)

_ENDS: dict[type[Exception], End] = {Retry: "retry", Permanent: "permanent", Cancel: "cancel", Snooze: "snooze"}
_MAX_SHOWN = 200


class RefusedPayload(Exception):
    """The arguments do not fit; the cause says why. A type of its own: the task itself can raise BadPayload."""


class Results:
    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def of_value(self, job: JobContext, definition: TaskDefinition, value: Any) -> Ended:
        if isinstance(value, CONTROLS):
            return self.of_error(job, value)
        try:
            result = definition.signature.encode_result(value)
        except EncodeError as error:
            return _ended(job, "permanent", _info("EncodeError", str(error)))
        except BaseException as error:  # noqa: BLE001 - the value's own classes take part in this
            return self.of_error(job, error)
        limit = self._setup.max_result_bytes
        if len(result) > limit:
            text = (
                f"the result of {_shown(job.task)} has {len(result)} bytes; the limit is {limit} bytes:"
                " keep large data with current_job().artifact(...) and return its name"
            )
            return _ended(job, "permanent", _info("ResultTooLarge", text))
        ended = _ended(job, "done")
        if len(result) <= self._setup.inline_result_bytes:
            ended.result = result.decode()
            return ended
        try:
            file = ArtifactFolder(self._setup.artifacts_dir, job.job_id).keep_result(result)
        except OSError as error:
            return self.of_error(job, error)
        ended.artifacts = [*ended.artifacts, file]
        return ended

    def of_error(self, job: JobContext, error: BaseException) -> Ended:
        try:
            return self._of_error(job, error)
        except BaseException:  # noqa: BLE001 - even to ask for its class can run the task's code
            return _ended(job, "failed", describe(error))

    def _of_error(self, job: JobContext, error: BaseException) -> Ended:
        if isinstance(error, RefusedPayload):
            return _ended(job, "bad_payload", _info("BadPayload", str(error.__cause__)))
        if job.stop_reason is not None and _is_stop(error):
            return _ended(job, "stopped", describe(error))
        for kind, end in _ENDS.items():
            if isinstance(error, kind):
                return _of_control(job, end, error)
        ended = _ended(job, "failed", describe(error))
        if isinstance(error, MemoryError | RecursionError):
            ended.recycle = f"a job raised {type(error).__name__}"
        return ended

    def unknown_task(self, job: JobContext) -> Ended:
        text = f"app {self._setup.app} offers no task {_shown(job.task)}"
        return _ended(job, "permanent", _info("UnknownTask", text))

    def foreign(self, job: JobContext, call: Call, defined_in: str) -> Ended:
        text = f"it was enqueued by {call.source}, but the task {_shown(call.task)} of this app is that of {defined_in}"
        hint = "if it is one project, give both a name: Semantica(project='...')"
        return _ended(job, "permanent", _info("ForeignTask", f"{text}; {hint}"))

    def wrong_kind(self, job: JobContext, runs: str) -> Ended:
        text = f"this worker runs {runs} tasks only, which {_shown(job.task)} is not: has the app changed meanwhile?"
        return _ended(job, "failed", _info("WrongKind", text))

    def stopped_before(self, job: JobContext) -> Ended:
        """It was told to stop before its code ran."""
        return _ended(job, "stopped")


def _ended(job: JobContext, end: End, exception: ExceptionInfo | None = None) -> Ended:
    return Ended(
        job_id=job.job_id,
        claim_no=job.claim_no,
        end=end,
        ran_us=0,
        exception=exception,
        artifacts=list(job.artifacts.values()),
        progress=job.last_progress,
    )


def _of_control(job: JobContext, end: End, error: BaseException) -> Ended:
    delay = error.seconds if isinstance(error, Snooze) else error.delay if isinstance(error, Retry) else None
    try:
        delay_ms = milliseconds(f"the delay of {type(error).__name__}", delay)
    except ValueError as wrong:
        return _ended(job, "failed", describe(wrong))
    ended = _ended(job, end, describe(error))
    ended.delay_ms = delay_ms
    return ended


def _is_stop(error: BaseException) -> bool:
    """Whether this is what stops a job, also out of a group of tasks."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(_is_stop_itself) is not None
    return _is_stop_itself(error)


def _is_stop_itself(error: BaseException) -> bool:
    # By its name: a sync worker need not have loaded asyncio.
    return isinstance(error, Interrupted) or (
        type(error).__name__ == "CancelledError" and type(error).__module__ == "asyncio.exceptions"
    )


def _info(kind: str, message: str) -> ExceptionInfo:
    return ExceptionInfo(type=kind, message=message)


def _shown(name: str) -> str:
    return repr(name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}...")
