"""What several messages are made of: their bases, and the checked types of their fields."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from semtask.model import bounds

# Times are epoch ms, durations ms. What a type lets through is checked before a method is called.
QueueName = Annotated[str, bounds.QUEUE_NAME]
JobType = Annotated[str, bounds.JOB_TYPE]
SubjectKey = Annotated[str, bounds.SUBJECT_KEY]
Tag = Annotated[str, bounds.TAG]
JobId = Annotated[str, bounds.JOB_ID]
GraceMs = Annotated[int, bounds.GRACE]
EpochMs = Annotated[int, bounds.MOMENT]
AbsolutePath = Annotated[str, bounds.ABSOLUTE_PATH]


class Params(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all parameters: one that a class does not have is refused."""


class NoParams(Params):
    pass


class Result(Struct, kw_only=True):
    """Base of all results. Results only grow."""
