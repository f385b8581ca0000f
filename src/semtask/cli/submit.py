"""`run` and `enqueue`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from semtask.cli import render
from semtask.cli.arguments import existing_folder, now_ms, require_utf8, scopes, task_arguments, variables
from semtask.cli.complete import task_names
from semtask.cli.job_options import JOB_OPTIONS
from semtask.cli.sandbox import sandbox_options, take_sandbox
from semtask.cli.session import Command, Session, pass_session
from semtask.client.messages import ENQUEUE, GET_JOB, LIST_APPS, LIST_TASKS, json_of
from semtask.config.environment import inherited
from semtask.model.identifiers import command_name
from semtask.model.trace_context import trace_id_of

if TYPE_CHECKING:
    from semtask.client.transport import Transport
    from semtask.protocol.apps import TaskView
    from semtask.protocol.enqueue import Enqueued

_IMPORT_S = 10.0


def _job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(JOB_OPTIONS):
        command = option(command)
    return command


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@click.argument("words", metavar="[--] COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-d", "--detach", is_flag=True, help="Print the id and return immediately.")
@click.option(
    "--ctrl-c",
    type=click.Choice(["cancel", "detach", "ask"]),
    help="What Ctrl-C does: cancel the job, leave it running, or ask. Default: the setting ctrl_c.",
)
@click.option("-e", "--env", multiple=True, metavar="K[=V]", help="Set a variable, or pass on yours.")
@click.option("--cwd", metavar="DIR", help="The folder to run it in. Default: this one.")
@click.option("-n", "--name", help="The job's name. Default: the name of the command.")
@click.option(
    "--access",
    type=scopes,
    metavar="SCOPE,...",
    help="Give it a token for this daemon while it runs: read, enqueue, command, admin.",
)
@sandbox_options
@_job_options
@pass_session
def run(
    session: Session,
    /,
    words: tuple[str, ...],
    *,
    detach: bool,
    ctrl_c: str | None,
    env: tuple[str, ...],
    cwd: str | None,
    name: str | None,
    access: tuple[str, ...] | None,
    **options: Any,
) -> int:
    """Run a command as a durable job, stream its output and return its exit code.

    Ctrl-C cancels the job and waits for its end: SIGTERM, and SIGKILL after its grace. A second Ctrl-C kills it
    immediately, a third one does not wait for that. SIGTERM does the same. With --ctrl-c=detach the first Ctrl-C leaves
    the job running, with --ctrl-c=ask it asks on the terminal. A job outlives its terminal: SIGHUP leaves it running.

    With --retries the exit code is that of the last attempt; 124 says that a time limit ended it, 75 that it never ran,
    130 that Ctrl-C ended it or left it.

    When whoever reads the output has gone, as in `| head -2`, the job is cancelled; the exit code is 141.
    """
    settings = session.settings
    if detach and ctrl_c is not None:
        raise click.UsageError("--ctrl-c and --detach exclude each other")
    if ctrl_c == "ask":
        from semtask.cli.question import has_terminal

        if not has_terminal():
            raise click.UsageError("--ctrl-c=ask needs a terminal to ask on")
    apart = not detach and not _one_file(1, 2)
    folder = existing_folder(cwd)
    environment = inherited(os.environ, settings.env_allowlist) | variables(env, os.environ)
    require_utf8({**environment, "the working directory": folder})
    payload = {
        "command": words[0],
        "args": list(words[1:]),
        "env": environment,
        "working_dir": folder,
        "umask": _umask(),
        **_standing(),
        "stderr": "split" if apart else "merged",
        **({"access": list(access)} if access else {}),
        **take_sandbox(options),
    }
    job_type = name or command_name(words[0])
    params = _params(job_type, payload, "SUBPROCESS", options)
    if detach:
        _tell(session, params, session.daemon.send(ENQUEUE(**params)))
        return 0
    from semtask.cli.attach import Attachment
    from semtask.cli.follow import streams_to, writes_apart

    attachment = Attachment(session, ctrl_c or settings.ctrl_c)
    daemon = session.daemon  # started before signals become events: nothing is stored yet
    with attachment.signals():
        job = daemon.send(ENQUEUE(**params))
        _tell_relatives(session, params, job)
        if job.deduplicated:  # it may have been enqueued in another way
            found = daemon.send(GET_JOB(job_id=job.job_id, include=["payload"]))
            apart = writes_apart(found)
        return attachment.run(job.job_id, streams_to(apart=apart), whole=not job.deduplicated)


@click.command(cls=Command)
@click.argument("task", shell_complete=task_names)
@click.option(
    "-a", "--arg", "words", multiple=True, metavar="NAME=VALUE", help="An argument: JSON, otherwise a string."
)
@click.option("--payload", metavar="JSON|@FILE|-", help="All arguments as a JSON object.")
@_job_options
@pass_session
def enqueue(session: Session, /, task: str, words: tuple[str, ...], payload: str | None, **options: Any) -> None:
    """Enqueue a registered Python task and print the id of the job.

    What is not given here - queue, retries, time limits - is as the task declares it. `semtask tasks show TASK` lists
    its arguments.
    """
    daemon = session.daemon
    listed = _tasks_for(daemon, task)
    known = next((one for one in listed if one.name == task), None)
    arguments = task_arguments(words, payload, None if known is None else known.parameters)
    params = _params(task, arguments, "IN_PROCESS", options)
    if known is not None:
        params = _defaults(known, params) | params
    job = daemon.send(ENQUEUE(**params))
    if known is None:
        from semtask.cli.tasks import no_task

        session.notice(f"{no_task(task, listed)}; the job waits until one does (see `semtask apps`)")
    _tell(session, params, job)


def _tasks_for(daemon: Transport, task: str) -> list[TaskView]:
    """The registered tasks. If this one is missing while an app is being imported, as it is after a start, its end is
    waited for: the task may be there then, with options that the job must have."""
    give_up = time.monotonic() + _IMPORT_S
    while True:
        listed = _tasks(daemon)
        if any(one.name == task for one in listed) or time.monotonic() > give_up:
            return listed
        if not any(app.state == "starting" for app in daemon.send(LIST_APPS()).apps):
            return _tasks(daemon)  # its import may have ended between the two
        time.sleep(0.05)


def _tasks(daemon: Transport) -> list[TaskView]:
    return daemon.send(LIST_TASKS()).tasks


def _defaults(task: TaskView, given: dict[str, Any]) -> dict[str, Any]:
    """The options that the task declares, as parameters of dev.enqueue.v1."""
    defaults = {name: value for name, value in task.defaults.items() if value is not None}
    if "subject_key" not in given:
        defaults.pop("on_duplicate", None)  # it is about jobs of one subject
    if (left_ms := defaults.pop("deadline_ms", None)) is not None:
        schedule = given.get("schedule", {})
        begin = max(round(now_ms()) + schedule.get("delay_ms", 0), schedule.get("scheduled_at", 0))
        defaults["deadline"] = begin + left_ms
    return defaults


def _params(job_type: str, payload: dict[str, Any], mode: str, options: dict[str, Any]) -> dict[str, Any]:
    """The parameters of dev.enqueue.v1. The key of our own lets the transport repeat it if the answer is lost."""
    at, delay_ms, retries = options.pop("at"), options.pop("delay_ms"), options.pop("retries")
    if at is not None and delay_ms is not None:
        raise click.UsageError("--at and --in exclude each other")
    key = options.pop("idempotency_key")
    params: dict[str, Any] = {
        "job_type": job_type,
        "payload": payload,
        "execution_mode": mode,
        "idempotency_key": os.urandom(16).hex() if key is None else key,
        **{name: value for name, value in options.items() if value is not None},
    }
    if retries is not None:
        params["max_attempts"] = retries + 1
    if at is not None:
        params["schedule"] = {"type": "AT", "scheduled_at": at}
    if delay_ms is not None:
        params["schedule"] = {"type": "AFTER", "delay_ms": delay_ms}
    traceparent = os.environ.get("TRACEPARENT", "")
    if trace_id_of(traceparent):  # a broken one is to be ignored, says its standard
        params["traceparent"] = traceparent
    return params


def _tell(session: Session, params: dict[str, Any], job: Enqueued) -> None:
    _tell_relatives(session, params, job)
    if session.json:
        session.emit({"schema": "enqueued.v1", **json_of(job)})
    else:
        session.line(job.job_id)


def _tell_relatives(session: Session, params: dict[str, Any], job: Enqueued) -> None:
    """What the enqueue did to other jobs. A key of our own makes no news: it only repeats what was lost."""
    if session.json:
        return
    if job.deduplicated and params.get("on_duplicate") == "join":
        session.notice(f"joined {render.short(job.job_id)}, which is there for this subject already")
    if count := job.superseded:
        session.notice(f"superseded {count} earlier job{'s' * (count != 1)} of this subject")


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _standing() -> dict[str, Any]:
    """The niceness, the CPUs and the limits of this process, where somebody has set them."""
    if sys.platform != "linux":
        return {}
    from semtask.host.standing import of_this_process

    return of_this_process().as_payload()


def _one_file(first: int, second: int) -> bool:
    """Whether two descriptors lead to the same file, as on a terminal or with 2>&1."""
    try:
        one, two = os.fstat(first), os.fstat(second)
    except OSError:
        return False
    return os.path.samestat(one, two)
