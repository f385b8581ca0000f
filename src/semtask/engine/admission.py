"""From a request to a job that may be stored: everything that can be checked is checked here, before the writer."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from semtask.engine.floors import why_not_together, wish_of
from semtask.errors import ValidationError, suggestion
from semtask.model.job import ExecutionMode, Job, NewJob, OnDuplicate, OnInterrupt
from semtask.model.sandbox import SandboxLevel, confines
from semtask.model.scope import Scope
from semtask.protocol.enqueue import CommandPayload, EnqueueParams, SandboxWish
from semtask.protocol.frames import TaskInfo

# What a retry takes over from the job that ended.
_COPIED = (
    "queue",
    "job_type",
    "execution_mode",
    "payload",
    "on_interrupt",
    "content_hash",
    "priority",
    "max_attempts",
    "backoff_factor",
    "retry_base_delay_ms",
    "retry_max_delay_ms",
    "timeout_ms",
    "grace_ms",
    "ttl_ms",
    "subject_key",
    "tag",
    "chain_group_id",
    "parent_job_id",
    "trace_context",
    "retry_on_crash",
    "source",
)
# Of msgspec's messages, the two whose place is the object around what is wrong.
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(.*)`", re.DOTALL)
_DEFAULT_ON_INTERRUPT = {
    ExecutionMode.IN_PROCESS: OnInterrupt.REQUEUE,
    ExecutionMode.SUBPROCESS: OnInterrupt.FAIL,
}


class Tasks(Protocol):
    """What is known about tasks: see engine.apps."""

    def task(self, name: str) -> TaskInfo | None: ...
    def check(self, task: str, payload: bytes, source: str | None) -> None: ...


class Admission:
    """Turns valid parameters into a NewJob; raises ValidationError with the place of what is wrong."""

    def __init__(
        self,
        *,
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
        max_payload_bytes: int,
        retry_base_delay_ms: int,
        tasks: Tasks,
    ) -> None:
        self._new_id = new_id
        self._tasks = tasks
        self._now_ms = now_ms
        self._max_payload_bytes = max_payload_bytes
        self._retry_base_delay_ms = retry_base_delay_ms

    def admit(self, params: EnqueueParams) -> NewJob:
        payload = bytes(params.payload)
        if len(payload) > self._max_payload_bytes:
            raise _invalid(
                "payload", f"has {len(payload):,} bytes; the limit (max_payload_bytes) is {self._max_payload_bytes:,}"
            )
        mode = params.execution_mode or self._mode_of(params.job_type, payload)
        if mode is ExecutionMode.SUBPROCESS:
            arguments = _command(payload)
        else:
            known = self._tasks.task(params.job_type) is not None
            self._tasks.check(params.job_type, payload, params.source or None)
            arguments = _task_arguments(payload, may_be_other=not params.execution_mode and not known)
        now = self._now_ms()
        run_at = _run_at(params, now)
        base = params.retry_base_delay_ms
        retry_base_delay_ms = self._retry_base_delay_ms if isinstance(base, UnsetType) else base
        _refuse_contradictions(params, run_at or now, now, retry_base_delay_ms)
        return NewJob(
            job_id=self._new_id(),
            queue=params.queue,
            job_type=params.job_type,
            execution_mode=mode,
            payload=payload.decode(),
            created_at=now,
            run_at=run_at,
            priority=params.priority,
            max_attempts=params.max_attempts,
            backoff_factor=params.backoff_factor,
            retry_base_delay_ms=retry_base_delay_ms,
            retry_max_delay_ms=params.retry_max_delay_ms,
            retry_on_crash=params.retry_on_crash,
            timeout_ms=params.timeout_ms or None,
            deadline=None if isinstance(params.deadline, UnsetType) else params.deadline,
            ttl_ms=params.ttl_ms or None,
            subject_key=params.subject_key or None,
            on_duplicate=_on_duplicate(params),
            grace_ms=params.grace_ms,
            tag=params.tag or None,
            chain_group_id=params.chain_group_id or None,
            parent_job_id=params.parent_job_id or None,
            trace_context=params.traceparent or None,
            idempotency_key=params.idempotency_key or None,
            source=params.source or None if mode is ExecutionMode.IN_PROCESS else None,
            on_interrupt=params.on_interrupt or _DEFAULT_ON_INTERRUPT[mode],
            durability=params.durability,
            content_hash=_content_hash(params, mode, arguments),
        )

    def _mode_of(self, job_type: str, payload: bytes) -> ExecutionMode:
        """A registered task, else a command, else a task that nobody offers yet."""
        if self._tasks.task(job_type) is not None:
            return ExecutionMode.IN_PROCESS
        return _mode_of(payload)

    def copy(self, job: Job) -> NewJob:
        """A new job like this finished one. It has no key, which stays with the first; its deadline is as far away
        as the first one's was; within its subject it goes behind what is there."""
        now = self._now_ms()
        return NewJob(
            job_id=self._new_id(),
            created_at=now,
            deadline=None if job.deadline is None else now + job.deadline - job.created_at,
            on_duplicate=OnDuplicate.AFTER if job.subject_key else None,
            retry_of=job.job_id,
            **{name: getattr(job, name) for name in _COPIED},
        )


def _invalid(place: str, what: str) -> ValidationError:
    return ValidationError(f"`{place}` {what}", details={"parameter": place})


class _Probe(msgspec.Struct):
    command: msgspec.Raw = msgspec.Raw()


def _mode_of(payload: bytes) -> ExecutionMode:
    try:
        probe = msgspec.json.decode(payload, type=_Probe)
    except msgspec.MsgspecError:
        return ExecutionMode.IN_PROCESS
    return ExecutionMode.SUBPROCESS if bytes(probe.command) else ExecutionMode.IN_PROCESS


def _task_arguments(payload: bytes, *, may_be_other: bool) -> object:
    """`may_be_other`: nobody has said yet that it is for a task with arguments."""
    arguments = msgspec.json.decode(payload)
    if not isinstance(arguments, dict) and not may_be_other:
        raise _invalid("payload", "of a task is an object with its arguments by name")
    return arguments


def _command(payload: bytes) -> object:
    try:
        command = msgspec.json.decode(payload, type=CommandPayload)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        place = "payload" + path.rstrip("`")
        if field := _FIELD.fullmatch(text):
            name = field[2][:128]
            meant = suggestion(name, CommandPayload.__struct_fields__)
            what = "is missing" if field[1] == "missing required" else f"is not known{meant}"
            raise _invalid(f"{place}.{name}", what) from None
        raise _invalid(place, f"is not valid: {text}") from None
    _refuse_nul("payload.command", command.command)
    for index, argument in enumerate(command.args):
        _refuse_nul(f"payload.args[{index}]", argument)
    for name, value in command.env.items():
        if not name or "=" in name:
            raise _invalid("payload.env", f"has {name!r}, which is no name of a variable")
        _refuse_nul("payload.env", name)
        _refuse_nul(f"payload.env.{name}", value)
    if command.working_dir is not UNSET:
        _require_path("payload.working_dir", command.working_dir)
    content = [command.command, command.args, command.working_dir or None]
    wish = wish_of(command.sandbox)
    _check_sandbox(wish, command.access)
    # A part of it: no job with a weaker sandbox stands for this one.
    return content if wish.level is SandboxLevel.NONE else [*content, wish]


def _check_sandbox(wish: SandboxWish, access: Collection[Scope]) -> None:
    place = "payload.sandbox"
    paths = [name for name in ("read", "write", "network") if getattr(wish, name)]
    if paths and not confines(wish.level):
        raise _invalid(f"{place}.{paths[0]}", f"means nothing at the level {wish.level}; take landlock or bwrap")
    for name in ("read", "write"):
        for index, path in enumerate(getattr(wish, name)):
            _require_path(f"{place}.{name}[{index}]", path)
    if wish.limits and wish.level is SandboxLevel.NONE:
        raise _invalid(f"{place}.{next(iter(wish.limits))}", "means nothing at the level none; take limits")
    if why := why_not_together(wish.level, access):
        raise _invalid(place, f"does not go with `payload.access`: {why}")


def _refuse_nul(place: str, text: str) -> None:
    if "\0" in text:
        raise _invalid(place, "contains a NUL character, which no program can be given")


def _require_path(place: str, path: str) -> None:
    _refuse_nul(place, path)
    if not os.path.isabs(path):
        raise _invalid(place, f"must be an absolute path, not {path!r}")


def _run_at(params: EnqueueParams, now: int) -> int | None:
    schedule = params.schedule
    if not schedule:
        return None
    given = {name for name in ("scheduled_at", "delay_ms") if getattr(schedule, name) is not UNSET}
    wanted = {"IMMEDIATE": set(), "AT": {"scheduled_at"}, "AFTER": {"delay_ms"}}[schedule.type]
    if given != wanted:
        need = f"needs `{wanted.pop()}` and nothing else" if wanted else "takes no time"
        raise _invalid("schedule", f"of type {schedule.type} {need}")
    if schedule.scheduled_at is not UNSET:
        return schedule.scheduled_at
    return now + schedule.delay_ms if schedule.delay_ms is not UNSET else None


def _refuse_contradictions(params: EnqueueParams, due: int, now: int, retry_base_delay_ms: int) -> None:
    if not isinstance(params.deadline, UnsetType) and params.deadline <= due:
        when = "run_at" if due > now else "now"
        raise _invalid("deadline", f"({params.deadline}) is not later than {when} ({due}): the job could never run")
    if params.on_duplicate and not params.subject_key:
        raise _invalid("on_duplicate", "says what happens to jobs of the same subject; give a `subject_key`")
    if retry_base_delay_ms > params.retry_max_delay_ms:
        raise _invalid(
            "retry_max_delay_ms",
            f"({params.retry_max_delay_ms}) is less than retry_base_delay_ms ({retry_base_delay_ms})",
        )


def _on_duplicate(params: EnqueueParams) -> OnDuplicate | None:
    if not params.subject_key:
        return None
    return params.on_duplicate or OnDuplicate.SUPERSEDE


def _content_hash(params: EnqueueParams, mode: ExecutionMode, arguments: object) -> bytes:
    """What an idempotency key stands for: never the environment, the umask, times or the traceparent."""
    content = [params.job_type, params.queue, params.subject_key or None, mode, arguments]
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).digest()
