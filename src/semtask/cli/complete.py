"""What the shell offers for a word: job ids, queues, tags, apps and tasks, from a running daemon that answers quickly.

Nothing is started and nothing is said: a completion that fails offers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import click

from semtask.client.messages import LIST_APPS, LIST_QUEUES, LIST_TASKS, QUERY_JOBS, Request

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from semtask.protocol.jobs import JobView

R = TypeVar("R")
T = TypeVar("T")

_LIMIT_S = 0.3
_JOBS = 200


def job_words(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The ends of ids, newest first; whole ids when more than such an end was typed."""
    from semtask.cli import render

    words: list[tuple[str, str]] = [("last", "the newest job")]
    for job in _jobs(ctx):
        shown = job.job_id if len(incomplete) > render.SHORT_ID else render.short(job.job_id)
        words.append((shown, f"{job.state} {render.name_of(job)}"[:60]))
        if job.subject_key:
            words.append((f"@{job.subject_key}", f"the newest job of {job.subject_key}"))
    return _items(words, incomplete)


def queue_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    queues = _ask(ctx, LIST_QUEUES(), lambda answer: answer.queues)
    return _items(((q.name, f"{q.running} running, {q.queued} queued") for q in queues), incomplete)


def tag_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Of the newest jobs."""
    jobs = _jobs(ctx)
    return _items(((job.tag, "") for job in jobs if job.tag), incomplete)


def app_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    apps = _ask(ctx, LIST_APPS(), lambda answer: answer.apps)
    return _items(((app.name, f"{app.state}, {app.tasks} tasks") for app in apps), incomplete)


def task_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Of all apps, with the first line of what they say about themselves."""
    tasks = _ask(ctx, LIST_TASKS(), lambda answer: answer.tasks)
    return _items(((task.name, (task.doc or "").partition("\n")[0][:60]) for task in tasks), incomplete)


def _jobs(ctx: click.Context) -> list[JobView]:
    """The newest ones."""
    return _ask(ctx, QUERY_JOBS(limit=_JOBS), lambda answer: answer.items)


def _ask(ctx: click.Context, request: Request[R], part: Callable[[R], list[T]]) -> list[T]:
    from semtask.cli.session import Session
    from semtask.client.address import address_of
    from semtask.client.transport import Transport

    try:
        address = address_of(ctx.ensure_object(Session).settings)
        with Transport(address, notice=lambda _: None) as transport:
            transport.connect(_LIMIT_S)
            return part(transport.send(request, timeout=_LIMIT_S))
    except Exception:  # noqa: BLE001 - in the middle of a line that is being typed, every message is in the way
        return []


def _items(words: Iterable[tuple[str, str]], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from semtask.cli import render

    found: dict[str, str] = {}
    for word, about in words:
        if word.startswith(incomplete) and word.isprintable():  # one line each, for the shell
            found.setdefault(word, render.printable(about))
    return [CompletionItem(word, help=about or None) for word, about in found.items()]
