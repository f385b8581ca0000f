"""From a request to a job that may be stored: everything that can be checked is checked here, before the writer."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import Protocol

import msgspec
from msgspec import UNSET, structs

from semtask.engine.floors import why_not_together, wish_of
from semtask.errors import ValidationError, suggestion
from semtask.model.job import (
    AdmittedJob,
    ExecutionMode,
    Job,
    JobSpec,
    NewJob,
    OnDuplicate,
    OnInterrupt,
    Schedule,
)
from semtask.model.sandbox import SandboxLevel, confines
from semtask.model.scope import Scope
from semtask.protocol.enqueue import CommandPayload, EnqueueParams, SandboxWish
from semtask.protocol.frames import TaskInfo

_NOT_KEPT = tuple(name for name in JobSpec.__struct_fields__ if name not in NewJob.__struct_fields__)
_shared = attrgetter(
    *(name for name in JobSpec.__struct_fields__ if name not in {"payload", "subject_key", "idempotency_key"})
)
# A retry has another key, and its deadline starts again.
_COPIED = tuple(
    name for name in AdmittedJob.__struct_fields__ if name not in {"idempotency_key", "content_hash", "run_at"}
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


class _Request:
    """A request while its jobs are admitted, all of them at one time.

    Most jobs of a request have the same options: these are settled and checked once, and the next job is a copy with
    its own payload, subject and key.
    """

    def __init__(self, now: int) -> None:
        self.now = now
        self._said: object = None
        self._mode: ExecutionMode | None = None
        self._job: NewJob | None = None

    def alike(self, params: EnqueueParams, mode: ExecutionMode) -> NewJob | None:
        """The job before, if this one has the same options."""
        said = _shared(params)
        if self._job is not None and mode is self._mode and said == self._said:
            return self._job
        self._said, self._mode = said, mode
        return None

    def keep(self, job: NewJob) -> NewJob:
        self._job = job
        return job


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
        """A command is decoded as `params.command`, and only there."""
        return self._admit(params, _Request(self._now_ms()))

    def admit_many(self, many: Sequence[EnqueueParams]) -> list[NewJob]:
        """The jobs of one request. An error names its place among them."""
        request = _Request(self._now_ms())
        jobs: list[NewJob] = []
        try:
            for params in many:
                jobs.append(self._admit(params, request))  # noqa: PERF401 - their number says where it failed
        except ValidationError as error:
            place = f"jobs[{len(jobs)}]"
            details = {**error.details, "parameter": f"{place}.{error.details.get('parameter', '')}".rstrip(".")}
            raise ValidationError(f"{place}: {error.message}", details=details) from error
        return jobs

    def _admit(self, params: EnqueueParams, request: _Request) -> NewJob:
        payload = bytes(memoryview(params.payload))
        if len(payload) > self._max_payload_bytes:
            raise _invalid(
                "payload", f"has {len(payload):,} bytes; the limit (max_payload_bytes) is {self._max_payload_bytes:,}"
            )
        mode = params.execution_mode or self._mode_of(params)
        if mode is ExecutionMode.SUBPROCESS:
            _check_command(params)
        else:
            self._check_task(params, payload)
        if params.on_duplicate is not None and params.subject_key is None:
            raise _invalid("on_duplicate", "says what happens to jobs of the same subject; give a `subject_key`")
        return structs.replace(
            request.alike(params, mode) or request.keep(self._settle(params, mode, request.now)),
            job_id=self._new_id(),
            payload=payload.decode(),
            subject_key=params.subject_key,
            on_duplicate=None if params.subject_key is None else params.on_duplicate or OnDuplicate.SUPERSEDE,
            idempotency_key=params.idempotency_key,
            content_hash=None if params.idempotency_key is None else _content_hash(params, mode),
        )

    def _settle(self, params: EnqueueParams, mode: ExecutionMode, now: int) -> NewJob:
        """The job, but for what is its own: see `_Request`."""
        run_at = None if params.schedule is None else _run_at(params.schedule, now)
        base_delay_ms = params.retry_base_delay_ms
        if base_delay_ms is None:
            base_delay_ms = self._retry_base_delay_ms
        _refuse_contradictions(params, run_at or now, now, base_delay_ms)
        settled = structs.asdict(params)
        for name in _NOT_KEPT:
            del settled[name]
        settled["execution_mode"] = mode
        settled["retry_base_delay_ms"] = base_delay_ms
        if params.on_interrupt is None:
            settled["on_interrupt"] = _DEFAULT_ON_INTERRUPT[mode]
        if mode is not ExecutionMode.IN_PROCESS:
            settled["source"] = None
        settled["job_id"] = ""
        settled["created_at"] = now
        settled["run_at"] = run_at
        settled["trace_context"] = params.traceparent
        return NewJob(**settled)

    def _mode_of(self, params: EnqueueParams) -> ExecutionMode:
        """A registered task, else a command, else a task that nobody offers yet."""
        if self._tasks.task(params.job_type) is not None:
            return ExecutionMode.IN_PROCESS
        try:
            params.command  # noqa: B018 - whether it is one
        except msgspec.MsgspecError:
            return _mode_of_other(params.payload)
        return ExecutionMode.SUBPROCESS

    def _check_task(self, params: EnqueueParams, payload: bytes) -> None:
        self._tasks.check(params.job_type, payload, params.source)
        # Where nobody has said yet that it is for a task, it may be something else than an object of arguments.
        is_task = params.execution_mode is not None or self._tasks.task(params.job_type) is not None
        if is_task and payload[:1] != b"{" and payload.lstrip(b" \t\r\n")[:1] != b"{":
            raise _invalid("payload", "of a task is an object with its arguments by name")

    def copy(self, job: Job) -> NewJob:
        """A new job like this finished one. It has no key, which stays with the first; its deadline is as far away
        as the first one's was; within its subject it goes behind what is there."""
        now = self._now_ms()
        values = {name: getattr(job, name) for name in _COPIED}
        values["job_id"] = self._new_id()
        values["created_at"] = now
        values["retry_of"] = job.job_id
        if job.deadline is not None:
            values["deadline"] = now + job.deadline - job.created_at
        return NewJob(on_duplicate=OnDuplicate.AFTER if job.subject_key else None, **values)


def _invalid(place: str, what: str) -> ValidationError:
    return ValidationError(f"`{place}` {what}", details={"parameter": place})


class _Probe(msgspec.Struct):
    command: msgspec.Raw = msgspec.Raw()


def _mode_of_other(payload: msgspec.Raw) -> ExecutionMode:
    """Of what is no command as it should be: whether it is meant to be one."""
    try:
        probe = msgspec.json.decode(payload, type=_Probe)
    except msgspec.MsgspecError:
        return ExecutionMode.IN_PROCESS
    return ExecutionMode.SUBPROCESS if bytes(probe.command) else ExecutionMode.IN_PROCESS


def _check_command(params: EnqueueParams) -> None:
    try:
        command = params.command
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None
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
    if command.sandbox is not UNSET:
        _check_sandbox(wish_of(command.sandbox), command.access)


def _explained(error: str) -> ValidationError:
    """msgspec's message, with the place and the name that was meant."""
    text, _, path = error.partition(" - at `$")
    place = "payload" + path.rstrip("`")
    if field := _FIELD.fullmatch(text):
        name = field[2][:128]
        meant = suggestion(name, CommandPayload.__struct_fields__)
        what = "is missing" if field[1] == "missing required" else f"is not known{meant}"
        return _invalid(f"{place}.{name}", what)
    return _invalid(place, f"is not valid: {text}")


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


def _run_at(schedule: Schedule, now: int) -> int | None:
    given = {name for name in ("scheduled_at", "delay_ms") if getattr(schedule, name) is not UNSET}
    wanted = {"IMMEDIATE": set(), "AT": {"scheduled_at"}, "AFTER": {"delay_ms"}}[schedule.type]
    if given != wanted:
        need = f"needs `{wanted.pop()}` and nothing else" if wanted else "takes no time"
        raise _invalid("schedule", f"of type {schedule.type} {need}")
    if schedule.scheduled_at is not UNSET:
        return schedule.scheduled_at
    return now + schedule.delay_ms if schedule.delay_ms is not UNSET else None


def _refuse_contradictions(params: EnqueueParams, due: int, now: int, retry_base_delay_ms: int) -> None:
    if params.deadline is not None and params.deadline <= due:
        when = "run_at" if due > now else "now"
        raise _invalid("deadline", f"({params.deadline}) is not later than {when} ({due}): the job could never run")
    if retry_base_delay_ms > params.retry_max_delay_ms:
        raise _invalid(
            "retry_max_delay_ms",
            f"({params.retry_max_delay_ms}) is less than retry_base_delay_ms ({retry_base_delay_ms})",
        )


def _content_hash(params: EnqueueParams, mode: ExecutionMode) -> bytes:
    """What an idempotency key stands for: never the environment, the umask, times or the traceparent."""
    arguments = _essence(params.command) if mode is ExecutionMode.SUBPROCESS else msgspec.json.decode(params.payload)
    content = [params.job_type, params.queue, params.subject_key, mode, arguments]
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).digest()


def _essence(command: CommandPayload) -> list[object]:
    content: list[object] = [command.command, command.args, command.working_dir or None]
    if command.sandbox is UNSET:
        return content
    wish = wish_of(command.sandbox)
    # A part of it: no job with a weaker sandbox stands for this one.
    return content if wish.level is SandboxLevel.NONE else [*content, wish]
