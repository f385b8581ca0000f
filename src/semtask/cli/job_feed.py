"""What happens to the jobs of some tasks: begun, ended, and what they write meanwhile. Asked for at a humane rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semtask.client.logs import Lines, LogReader, Piece, follow
from semtask.client.messages import GET_JOB, QUERY_JOBS, WAIT
from semtask.client.patience import send_patiently
from semtask.client.transport import Transport
from semtask.client.waiting import MOST_IDS
from semtask.errors import NotFound
from semtask.model.state import FINAL, State

if TYPE_CHECKING:
    from semtask.protocol.jobs import JobView

_PAGE = 200
_LIVE = [str(state) for state in State if state not in FINAL]


@dataclass(frozen=True)
class Begun:
    job: JobView


@dataclass(frozen=True)
class Line:
    """A line that an attempt wrote; `attempt` is its claim_no."""

    job: JobView
    attempt: int
    text: str


@dataclass(frozen=True)
class AttemptEnded:
    """An attempt that is not the last one."""

    job: JobView
    attempt: int


@dataclass(frozen=True)
class Ended:
    job: JobView


Event = Begun | Line | AttemptEnded | Ended


class _Attempt:
    """Reads what one attempt writes, line by line."""

    def __init__(self, transport: Transport, job: JobView, now_ms: Callable[[], float]) -> None:
        self.number = job.claim_no
        self._transport = transport
        self._reader = LogReader(job.job_id, "stdout", now_ms, follow=False, attempt=self.number)
        self._lines = Lines("backslashreplace")

    def lines(self, *, last: bool) -> Iterator[str]:
        """The whole lines that are new; with `last` the one without an end, too."""
        try:
            for item in follow(self._reader.read(), self._transport.send):
                if isinstance(item, Piece):
                    yield from self._lines.feed(item.data)
        except NotFound:  # it has written nothing
            return
        if last:
            yield from self._lines.end()


@dataclass
class _Followed:
    """A job that lives. `told` counts its executed attempts whose end was told: a claim that was given back is none."""

    told: int = 0
    attempt: _Attempt | None = None


class JobFeed:
    """The jobs that live now and those that come, of the tasks in `tasks`, which may change at any time.

    Of jobs that come and go by hundreds a second, or have quick retries, not all is seen.
    """

    def __init__(self, transport: Transport, tasks: frozenset[str], now_ms: Callable[[], float]) -> None:
        self.tasks = tasks
        self._transport = transport
        self._now_ms = now_ms
        self._since = round(now_ms())
        self._seen: set[str] = set()
        self._live = {job.job_id: _Followed(told=job.attempts) for job in self._jobs({"state": _LIVE})}

    def events(self, wait_ms: int) -> Iterator[Event]:
        """What has happened since the last call; waits up to `wait_ms` for the end of a job that lives."""
        for job_id in [job.job_id for job in self._jobs({"state": ["RUNNING"]})] + self._new():
            if len(self._live) < MOST_IDS:
                self._live.setdefault(job_id, _Followed())
        for job in self._look(wait_ms):
            if job.job_type in self.tasks:
                yield from self._of(job)
            if job.state in FINAL:
                del self._live[job.job_id]

    @property
    def busy(self) -> bool:
        """Whether there are jobs whose end may come at any time."""
        return bool(self._live)

    def _jobs(self, wanted: Mapping[str, Any]) -> list[JobView]:
        """The newest ones."""
        return send_patiently(self._transport.send, QUERY_JOBS(filter=wanted, limit=_PAGE)).items

    def _new(self) -> list[str]:
        page = self._jobs({"created_after": self._since})
        new = [job.job_id for job in reversed(page) if job.job_id not in self._seen]
        if page:
            self._since = page[0].created_at - 1
            self._seen = {job.job_id for job in page}
        return new

    def _look(self, wait_ms: int) -> list[JobView]:
        if not self._live:
            return []
        wait = WAIT(job_ids=list(self._live), mode="any", timeout_ms=wait_ms)
        try:
            return send_patiently(self._transport.send, wait).jobs
        except NotFound:  # one has ended and was deleted since
            self._live = {job_id: followed for job_id, followed in self._live.items() if self._is_there(job_id)}
            return []

    def _is_there(self, job_id: str) -> bool:
        try:
            send_patiently(self._transport.send, GET_JOB(job_id=job_id))
        except NotFound:
            return False
        return True

    def _of(self, job: JobView) -> Iterator[Event]:
        followed, running, ended = self._live[job.job_id], job.state == State.RUNNING, job.state in FINAL
        attempt = followed.attempt
        if attempt is not None and attempt.number < job.claim_no:
            yield from self._end(job, followed, attempt)
            attempt = None
        if attempt is None and (running or job.attempts > followed.told):
            attempt = followed.attempt = _Attempt(self._transport, job, self._now_ms)
            if running:
                followed.told = job.attempts
                yield Begun(job)
        if attempt is not None and (running or ended):
            yield from _lines(job, attempt, last=ended)
        elif attempt is not None:
            yield from self._end(job, followed, attempt)
        if ended:
            yield Ended(job)

    def _end(self, job: JobView, followed: _Followed, attempt: _Attempt) -> Iterator[Event]:
        """The rest of an attempt that was not the last one."""
        yield from _lines(job, attempt, last=True)
        if job.attempts > followed.told:
            followed.told = job.attempts
            yield AttemptEnded(job, attempt.number)


def _lines(job: JobView, attempt: _Attempt, *, last: bool) -> Iterator[Event]:
    for text in attempt.lines(last=last):
        yield Line(job, attempt.number, text)
