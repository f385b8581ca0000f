"""The options of a single enqueue, in the words of the SDK and as parameters of dev.enqueue.v1."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Unpack

from semtask.model.job import Schedule
from semtask.model.trace_context import trace_id_of
from semtask.sdk.keywords import EnqueueOptions
from semtask.tasks.context import current_or_none
from semtask.tasks.options import TaskOptions, milliseconds, params_of, require_known, require_options


@dataclass(frozen=True)
class JobOptions:
    """`params` as dev.enqueue.v1 has them; `deadline_ms` and `delay_ms` are counted when the job is enqueued."""

    params: Mapping[str, Any] = field(default_factory=dict)
    deadline_ms: int | None = None
    delay_ms: int | None = None
    at: int | None = None

    @classmethod
    def of_task(cls, options: TaskOptions) -> JobOptions:
        """What the task says for all of its jobs."""
        params = dict(options.params)
        return cls(params, deadline_ms=params.pop("deadline_ms", None))

    @property
    def has_key(self) -> bool:
        return "idempotency_key" in self.params

    def using(self, **options: Unpack[EnqueueOptions]) -> JobOptions:
        """These options with others in place. Raises TypeError for an unknown one, ValueError for a wrong value."""
        require_known(options, set(EnqueueOptions.__annotations__))
        if "delay" in options and "at" in options:
            raise ValueError("delay and at exclude each other")
        for name, value in options.items():
            if value is None:
                raise ValueError(f"{name} cannot be None; leave it out to have what the task says")
        said = params_of(options)
        require_options(said)
        params = {**self.params, **said}
        deadline, deadline_ms = options.get("deadline"), self.deadline_ms
        if isinstance(deadline, datetime):
            params["deadline"], deadline_ms = _epoch_ms("deadline", deadline), None
        elif deadline is not None:
            params.pop("deadline", None)
            deadline_ms = milliseconds("deadline", deadline)
        delay_ms, at = self.delay_ms, self.at
        if "delay" in options:
            delay_ms, at = milliseconds("delay", options["delay"]), None
        if "at" in options:
            delay_ms, at = None, _epoch_ms("at", options["at"])
        require_options({name: params[name] for name in ("deadline",) if isinstance(deadline, datetime)})
        if at is not None and at < 0:
            raise ValueError(f"at must be after 1970, not {options.get('at')!r}")
        return JobOptions(params, deadline_ms, delay_ms, at)

    def counted_from(self, now_ms: int) -> dict[str, Any]:
        """Parameters for a job that is enqueued now (epoch ms), by the job that runs here if there is one."""
        params = dict(self.params)
        if self.at is not None:
            params["schedule"] = Schedule(type="AT", scheduled_at=self.at)
        elif self.delay_ms is not None:
            params["schedule"] = Schedule(type="AFTER", delay_ms=self.delay_ms)
        if self.deadline_ms is not None:
            due = now_ms + (self.delay_ms or 0) if self.at is None else max(now_ms, self.at)
            params["deadline"] = due + self.deadline_ms
        job = current_or_none()
        if job is not None:
            params["parent_job_id"] = job.job_id
        traceparent = os.environ.get("TRACEPARENT") if job is None else job.traceparent
        if traceparent and trace_id_of(traceparent):  # a broken one is to be ignored, says its standard
            params["traceparent"] = traceparent
        return params


def _epoch_ms(option: str, when: datetime) -> int:
    if not isinstance(when, datetime):
        raise ValueError(f"{option} must be a datetime with a time zone, not {when!r:.100}")
    if when.tzinfo is None:
        raise ValueError(f"{option} needs a time zone, such as datetime.now(UTC) has: {when!r}")
    return (when - _EPOCH) // timedelta(milliseconds=1)


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
