"""A backend for Django's tasks: those of Django 6, or of the package django-tasks where Django has none.

    TASKS = {"default": {"BACKEND": "semtask.contrib.django.SemanticaBackend"}}

The workers import the app of this module. They run nothing but what they find themselves when they have set Django up:
the Task objects of all modules that are loaded then, with `tasks` of every installed app among them. The name of a job
is only looked up there; nothing is ever imported because a job names it. As a worker gets little of the environment,
a module of the site says where the settings are, as wsgi.py does, and is the app that is registered:

    # mysite/semantica.py, for `semtask up --app mysite.semantica:app`
    import os
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
    from semtask.contrib.django import app
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import django
from asgiref.sync import SyncToAsync, sync_to_async
from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE, settings
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules

from semtask.client import calls
from semtask.errors import NotFound, ValidationError, suggestion
from semtask.model.state import State
from semtask.protocol.jobs import JobView
from semtask.sdk.app import Semantica
from semtask.sdk.failures import failure_of
from semtask.sdk.keywords import EnqueueOptions
from semtask.sdk.options import JobOptions
from semtask.sdk.results import result_of
from semtask.sdk.task import AsyncTask
from semtask.sdk.task import Task as SemanticaTask
from semtask.tasks.context import JobContext, current_job
from semtask.tasks.control import Permanent, Retry, Snooze

if TYPE_CHECKING or django.VERSION < (6, 0):
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json
else:
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
    from django.tasks.exceptions import TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json

Job = SemanticaTask[..., Any] | AsyncTask[..., Any]

# Options of jobs that a task of Django says itself, or that belong to a single job.
_NOT_FOR_ALL = {"queue", "priority", "delay", "at", "subject", "on_duplicate", "idempotency_key"}

_semantica = Semantica()
_found: dict[str, tuple[Task, Job]] = {}


class SemanticaBackend(BaseTaskBackend):
    """OPTIONS are those of jobs, for all tasks of the backend: retry, timeout, deadline, ttl, grace (seconds), tag,
    retry_on_crash, on_interrupt, durability.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._options = _job_options(alias, params.get("OPTIONS", {}))

    def enqueue(self, task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskResult:
        self.validate_task(task)
        arguments = normalize_json([list(args), dict(kwargs)])
        result = self._enqueued(task, arguments, self._job(task).enqueue(*arguments, self.alias).id)
        task_enqueued.send(type(self), task_result=result)
        return result

    async def aenqueue(self, task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskResult:
        self.validate_task(task)
        arguments = normalize_json([list(args), dict(kwargs)])
        result = self._enqueued(task, arguments, (await self._job(task).aenqueue(*arguments, self.alias)).id)
        await task_enqueued.asend(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> TaskResult:
        """Raises TaskResultDoesNotExist."""
        try:
            job = _semantica.send(calls.get_job(result_id, include=["payload", "attempts", "result"]))
        except (NotFound, ValidationError) as error:
            raise TaskResultDoesNotExist(result_id) from error
        return self._result(job)

    async def aget_result(self, result_id: str) -> TaskResult:
        try:
            job = await _semantica.asend(calls.get_job(result_id, include=["payload", "attempts", "result"]))
        except (NotFound, ValidationError) as error:
            raise TaskResultDoesNotExist(result_id) from error
        return await sync_to_async(self._result)(job)

    def _job(self, task: Task) -> Job:
        options: EnqueueOptions = {**self._options, "queue": task.queue_name, "priority": task.priority}
        if task.run_after is not None:
            at = task.run_after
            options["at"] = at if timezone.is_aware(at) else timezone.make_aware(at)
        return _job_of(task).using(**options)

    def _enqueued(self, task: Task, arguments: list[Any], job_id: str) -> TaskResult:
        return _task_result(task, job_id, self.alias, arguments, enqueued_at=timezone.now())

    def _result(self, job: JobView) -> TaskResult:
        task = _find(job.job_type)
        if task is None or not isinstance(job.payload, dict) or job.payload.keys() != {"args", "kwargs", "backend"}:
            raise TaskResultDoesNotExist(f"job {job.job_id} ({job.job_type}) is of no task that is known here")
        attempts = job.attempts_list or []
        result = _task_result(
            task,
            job.job_id,
            job.payload["backend"],
            [job.payload["args"], job.payload["kwargs"]],
            status=_status(job.state),
            enqueued_at=_time(job.created_at),
            started_at=_time(attempts[0].started_at if attempts else job.started_at),
            last_attempted_at=_time(job.started_at),
            finished_at=_time(job.finished_at),
            errors=_errors(job),
            attempts=job.attempts + (job.state is State.RUNNING),
        )
        if job.state is State.DONE:
            object.__setattr__(result, "_return_value", result_of(job, json.loads))
        return result


# --- jobs as Django sees them --------------------------------------------------------------------------------------


def _task_result(
    task: Task,
    job_id: str,
    backend: str,
    arguments: list[Any],
    *,
    status: TaskResultStatus = TaskResultStatus.READY,
    enqueued_at: datetime | None = None,
    started_at: datetime | None = None,
    last_attempted_at: datetime | None = None,
    finished_at: datetime | None = None,
    errors: Sequence[TaskError] = (),
    attempts: int = 0,
) -> TaskResult:
    return TaskResult(
        task=task,
        id=job_id,
        status=status,
        enqueued_at=enqueued_at,
        started_at=started_at,
        last_attempted_at=last_attempted_at,
        finished_at=finished_at,
        args=arguments[0],
        kwargs=arguments[1],
        backend=backend,
        errors=list(errors),
        worker_ids=[f"{job_id}.{number + 1}" for number in range(attempts)],  # a name for each attempt
    )


def _status(state: State) -> TaskResultStatus:
    match state:
        case State.SCHEDULED | State.QUEUED:
            return TaskResultStatus.READY
        case State.RUNNING:
            return TaskResultStatus.RUNNING
        case State.DONE:
            return TaskResultStatus.SUCCESSFUL
    return TaskResultStatus.FAILED


def _errors(job: JobView) -> list[TaskError]:
    """Of the last attempt that failed; of a job that ended otherwise, the exception of semtask for that."""
    if job.state is State.DONE:
        return []
    if job.exception is not None:
        kind = job.exception.type
        path = kind if "." in kind else f"builtins.{kind}"
        return [TaskError(exception_class_path=path, traceback=job.exception.traceback)]
    failure = failure_of(job) if job.finished_at is not None else None
    if failure is None:
        return []
    path = f"{type(failure).__module__}.{type(failure).__qualname__}"
    return [TaskError(exception_class_path=path, traceback=str(failure))]


def _time(epoch_ms: int | None) -> datetime | None:
    if epoch_ms is None:
        return None
    when = datetime.fromtimestamp(epoch_ms / 1000, UTC)
    return when if settings.USE_TZ else timezone.make_naive(when)


def _job_options(alias: str, given: Mapping[str, Any]) -> EnqueueOptions:
    allowed = sorted(EnqueueOptions.__annotations__.keys() - _NOT_FOR_ALL)
    options: EnqueueOptions = {}
    for name, value in given.items():
        if name not in allowed:
            hint = suggestion(name, allowed) or f"; there are {', '.join(allowed)}"
            raise ImproperlyConfigured(f"TASKS[{alias!r}]: OPTIONS has no {name!r}{hint}")
        options[name] = value  # type: ignore[literal-required]
    try:
        JobOptions().using(**options)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"TASKS[{alias!r}]: {error}") from error
    return options


# --- Django's tasks as those of the app ----------------------------------------------------------------------------


def _job_of(task: Task) -> Job:
    if task.module_path not in _found:
        function = _async_function(task) if iscoroutinefunction(task.func) else _function(task)
        function.__doc__ = task.func.__doc__
        _found[task.module_path] = task, _semantica.task(name=task.module_path)(function)
    return _found[task.module_path][1]


def _find(name: str) -> Task | None:
    """Nothing is imported for it but the `tasks` modules of the installed apps."""
    for look in (None, _take_loaded, lambda: autodiscover_modules("tasks"), _take_loaded):
        if look is not None:
            look()
        if name in _found:
            return _found[name][0]
    return None


def _take_loaded() -> None:
    """All Task objects of the modules that are loaded."""
    for module in list(sys.modules.values()):
        for value in list(getattr(module, "__dict__", {}).values()):
            if issubclass(type(value), Task):  # isinstance would wake lazy objects
                _job_of(value)


def _function(task: Task) -> Callable[..., Any]:
    def run(args: list[Any], kwargs: dict[str, Any], backend: str) -> Any:
        attempt = _Attempt(task, [args, kwargs], backend)
        close_old_connections()
        try:
            task_started.send(SemanticaBackend, task_result=attempt.result)
            value = normalize_json(task.func(*attempt.context, *args, **kwargs))
        except BaseException as error:
            if attempt.fails_with(error):
                task_finished.send(SemanticaBackend, task_result=attempt.result)
            raise
        finally:
            close_old_connections()
        attempt.succeed(value)
        task_finished.send(SemanticaBackend, task_result=attempt.result)
        return value

    return run


def _async_function(task: Task) -> Callable[..., Any]:
    close = sync_to_async(close_old_connections)

    async def run(args: list[Any], kwargs: dict[str, Any], backend: str) -> Any:
        attempt = _Attempt(task, [args, kwargs], backend)
        await close()
        try:
            await task_started.asend(SemanticaBackend, task_result=attempt.result)
            value = normalize_json(await task.func(*attempt.context, *args, **kwargs))
        except BaseException as error:
            if attempt.fails_with(error):
                await task_finished.asend(SemanticaBackend, task_result=attempt.result)
            raise
        finally:
            await close()
        attempt.succeed(value)
        await task_finished.asend(SemanticaBackend, task_result=attempt.result)
        return value

    return run


class _Attempt:
    """What the task and the receivers of signals see of the job that runs."""

    def __init__(self, task: Task, arguments: list[Any], backend: str) -> None:
        self._job: JobContext = current_job()
        now = timezone.now()
        self.result = _task_result(
            task,
            self._job.job_id,
            backend,
            arguments,
            status=TaskResultStatus.RUNNING,
            started_at=now,
            last_attempted_at=now,
            attempts=self._job.attempt,
        )
        self.context = (TaskContext(task_result=self.result),) if task.takes_context else ()

    def succeed(self, value: Any) -> None:
        self._end(TaskResultStatus.SUCCESSFUL)
        object.__setattr__(self.result, "_return_value", value)

    def fails_with(self, error: BaseException) -> bool:
        """Whether that is the end of the job: it is not to be tried again."""
        again = self._job.attempt < self._job.max_attempts and not isinstance(error, Permanent)
        if again or isinstance(error, Retry | Snooze):
            return False
        from traceback import format_exception

        kind = type(error)
        path = f"{kind.__module__}.{kind.__qualname__}"
        self.result.errors.append(TaskError(exception_class_path=path, traceback="".join(format_exception(error))))
        self._end(TaskResultStatus.FAILED)
        return True

    def _end(self, status: TaskResultStatus) -> None:
        object.__setattr__(self.result, "status", status)
        object.__setattr__(self.result, "finished_at", timezone.now())


# --- the app of workers ----------------------------------------------------------------------------------------------


def __getattr__(name: str) -> Semantica:
    """`app`, with all tasks of the site. Made when it is asked for: Django itself imports this module as it starts."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not settings.configured and not os.environ.get(ENVIRONMENT_VARIABLE):
        raise ImproperlyConfigured(
            f"a worker does not know the settings of the site, as it inherits no {ENVIRONMENT_VARIABLE}; register a "
            "module of the site as the app, which sets it, and then imports app from semtask.contrib.django"
        )
    if not apps.ready:
        django.setup()
    autodiscover_modules("tasks")
    _take_loaded()
    if any(iscoroutinefunction(task.func) for task, _ in _found.values()):
        # The thread that sync_to_async keeps is there before the first job, which would else be seen to leave it.
        SyncToAsync.single_thread_executor.submit(int).result()
    return _semantica
