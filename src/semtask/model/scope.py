"""What a client may do."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Scope(StrEnum):
    """A right that a token gives. `command` holds `enqueue`, and `admin` holds all."""

    READ = "read"  # look at jobs with their payloads, results and logs, at queues, tasks and figures
    ENQUEUE = "enqueue"  # enqueue tasks, and cancel jobs
    COMMAND = "command"  # have any program run: enqueue commands, and retry finished jobs
    ADMIN = "admin"  # change queues and apps, and delete


_HELD = {Scope.COMMAND: {Scope.ENQUEUE}, Scope.ADMIN: set(Scope)}
ALL_SCOPES = frozenset(Scope)


class Grant(NamedTuple):
    """What a running job may do with the token that it was given."""

    job_id: str
    scopes: frozenset[Scope]


def held(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """The scopes, with those that they hold."""
    given = frozenset(scopes)
    return given.union(*(_HELD.get(scope, ()) for scope in given))
