"""`tasks` and `workers`: what the apps offer, and the processes that run it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from semtask.cli import render
from semtask.cli.arguments import now_ms
from semtask.cli.complete import task_names
from semtask.cli.session import Command, CommandGroup, Session, pass_session
from semtask.client.messages import LIST_TASKS, LIST_WORKERS, json_of
from semtask.errors import NotFound

if TYPE_CHECKING:
    from semtask.protocol.apps import TaskView

_SHORT = 10  # of the name of a worker: its beginning is nearly that of the others

# --- tasks -----------------------------------------------------------------------------------------------------------


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.pass_context
@pass_session
def tasks(session: Session, ctx: click.Context) -> None:
    """List the registered Python tasks, or show one."""
    if ctx.invoked_subcommand is None:
        _list_tasks(session)


@tasks.command(name="ls", cls=Command)
@pass_session
def tasks_ls(session: Session) -> None:
    """List the registered Python tasks."""
    _list_tasks(session)


@tasks.command(name="show", cls=Command)
@click.argument("name", shell_complete=task_names)
@pass_session
def tasks_show(session: Session, name: str) -> None:
    """Show one task: its arguments, its result, and the options that its jobs have."""
    listed = session.stored.send(LIST_TASKS()).tasks
    task = next((task for task in listed if task.name == name), None)
    if task is None:
        raise NotFound(no_task(name, listed), details={"task": name})
    if session.json:
        session.emit(_task_json(task))
    elif session.quiet:
        session.line(task.name)
    else:
        for line in _task_details(task):
            session.line(render.printable(line))


def no_task(name: str, listed: list[TaskView]) -> str:
    """'no app offers the task ...', and which one may be meant."""
    from semtask.errors import suggestion

    names = [task.name for task in listed]
    functions = [known for known in names if known.endswith(f":{name}")]  # the module was left out
    meant = f" (did you mean {functions[0]!r}?)" if functions else suggestion(name, names)
    return f"no app offers the task {name!r}{meant}"


def _list_tasks(session: Session) -> None:
    listed = session.stored.send(LIST_TASKS()).tasks
    if session.json:
        for task in listed:
            session.emit(_task_json(task))
    elif session.quiet:
        for task in listed:
            session.line(task.name)
    else:
        rows = [
            [
                render.printable(task.name),
                task.app,
                _kind(task),
                render.printable(str(task.defaults.get("queue", "default"))),
                _about(task),
            ]
            for task in listed
        ]
        _print_rows(session, ["TASK", "APP", "KIND", "QUEUE", "ABOUT"], rows)


def _task_json(task: TaskView) -> dict[str, Any]:
    return {"schema": "task.v1", **json_of(task)}


def _kind(task: TaskView) -> str:
    return "async" if task.is_async else "sync"


def _about(task: TaskView) -> str:
    return render.printable((task.doc or "").strip().partition("\n")[0])


def _task_details(task: TaskView) -> list[str]:
    schema, returns = task.parameters, task.returns
    facts = {
        "task": task.name,
        "app": task.app,
        "kind": _kind(task),
        "concurrency": task.concurrency,
        **{name: value for name, value in task.defaults.items() if value is not None},
        "returns": None if returns is None else in_words(returns, returns),
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items() if value is not None]
    for name, wanted in schema.get("properties", {}).items():
        default = f" = {json.dumps(wanted['default'])}" if "default" in wanted else ""
        optional = "" if name in schema.get("required", ()) else "?"
        lines.append(f"{'--arg':<{width}}  {name}{optional}: {in_words(wanted, schema)}{default}")
    if task.doc:
        lines += ["", *task.doc.strip().splitlines()]
    return lines


def in_words(wanted: Mapping[str, Any], root: Mapping[str, Any], depth: int = 3) -> str:
    """A schema as one short type, such as 'array of string | null'; `root` has the definitions it refers to."""
    if "$ref" in wanted:
        name = wanted["$ref"].rpartition("/")[2]
        definition = root.get("$defs", {}).get(name, {})
        return in_words(definition, root, depth) if "enum" in definition else name
    for several in ("anyOf", "oneOf"):
        if several in wanted:
            return " | ".join(in_words(one, root, depth) for one in wanted[several])
    if "enum" in wanted or "const" in wanted:
        return " | ".join(json.dumps(one) for one in wanted.get("enum", [wanted.get("const")]))
    kind = wanted.get("type", "any")
    if kind == "array" and depth and isinstance(wanted.get("items"), dict):
        return f"array of {in_words(wanted['items'], root, depth - 1)}"
    if kind == "object" and depth and isinstance(wanted.get("additionalProperties"), dict):
        return f"object of {in_words(wanted['additionalProperties'], root, depth - 1)}"
    named = kind if isinstance(kind, str) else " | ".join(kind)
    return f"{named} ({wanted['format']})" if "format" in wanted else named


# --- workers ---------------------------------------------------------------------------------------------------------


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.pass_context
@pass_session
def workers(session: Session, ctx: click.Context) -> None:
    """List the processes that run tasks."""
    if ctx.invoked_subcommand is None:
        _list_workers(session)


@workers.command(name="ls", cls=Command)
@pass_session
def workers_ls(session: Session) -> None:
    """List the processes that run tasks."""
    _list_workers(session)


def _list_workers(session: Session) -> None:
    listed = session.stored.send(LIST_WORKERS()).workers
    if session.json:
        for worker in listed:
            session.emit({"schema": "worker.v1", **render.with_iso_times(json_of(worker))})
    elif session.quiet:
        for worker in listed:
            session.line(worker.worker)
    else:
        now = now_ms()
        rows = [
            [
                worker.worker[-_SHORT:] if session.terminal else worker.worker,
                worker.app,
                str(worker.pid or "-"),
                worker.state,
                worker.kind or "-",
                str(worker.jobs_done),
                render.duration(now - worker.started_at),
                ",".join(map(render.short, worker.running[:4])) + (",..." if len(worker.running) > 4 else ""),
            ]
            for worker in listed
        ]
        _print_rows(session, ["WORKER", "APP", "PID", "STATE", "KIND", "DONE", "UP", "JOBS"], rows)


def _print_rows(session: Session, header: list[str], rows: list[list[str]]) -> None:
    """A table on a terminal, else tab-separated values."""
    lines = render.table(header, rows) if session.terminal else ["\t".join(row) for row in rows]
    for line in lines:
        session.line(line)
