"""Waiting for ends, and patience, with a daemon that is scripted: no time passes here but what the script says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from semtask.client import patience, waiting
from semtask.client.messages import GET_JOB, Message, Request
from semtask.client.patience import PATIENCE_S, asend_patiently, send_patiently
from semtask.client.waiting import EXPLAIN_AFTER_MS, LONGEST_MS, wait_for_ends
from semtask.errors import DaemonUnavailable, NotFound, Throttled

LOOK = GET_JOB(job_id="x")


class Clock:
    """Stands in for the module `time` of those who wait."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(patience, "time", made)
    monkeypatch.setattr(waiting, "time", made)
    return made


def _daemon_that_is_away(clock: Clock, until: float, error: Exception) -> Callable[[Request[Any]], Any]:
    def send(request: Request[Any], /) -> Any:
        if clock.now < until:
            raise error
        return Message({"job_id": request.params["job_id"]})

    return send


@pytest.mark.parametrize("error", [DaemonUnavailable("away"), Throttled("stopping")])
def test_a_daemon_that_comes_back_in_time_is_waited_for(clock: Clock, error: Exception) -> None:
    send = _daemon_that_is_away(clock, clock.now + PATIENCE_S - 1, error)
    assert send_patiently(send, LOOK).job_id == "x"
    send = _daemon_that_is_away(clock, clock.now + PATIENCE_S + 1, error)
    with pytest.raises(type(error)):
        send_patiently(send, LOOK)


def test_a_refusal_is_no_absence(clock: Clock) -> None:
    begin = clock.now
    with pytest.raises(NotFound):
        send_patiently(_daemon_that_is_away(clock, clock.now + 1, NotFound("no such job")), LOOK)
    assert clock.now == begin


def test_nobody_is_waited_for_beyond_the_deadline(clock: Clock) -> None:
    begin = clock.now
    with pytest.raises(DaemonUnavailable):
        send_patiently(_daemon_that_is_away(clock, begin + 10, DaemonUnavailable("away")), LOOK, deadline=begin + 2)
    assert 2 <= clock.now - begin < 3


def test_the_same_with_asyncio(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    send = _daemon_that_is_away(clock, clock.now + 5, DaemonUnavailable("away"))

    async def asend(request: Request[Any], /) -> Any:
        return send(request)

    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert asyncio.run(asend_patiently(asend, LOOK)).job_id == "x"


class Job:
    """A job that ends at a time; the daemon waits as long as it is asked to, and answers `early_s` too early."""

    def __init__(self, clock: Clock, ends_at: float, early_s: float = 0.0) -> None:
        self._early_s = early_s
        self._clock = clock
        self._ends_at = ends_at
        self.asked_ms: list[int] = []

    def __call__(self, request: Request[Any], /) -> Any:
        self.asked_ms.append(request.params["timeout_ms"])
        end = self._clock.now + max(0.0, self.asked_ms[-1] / 1000 - self._early_s)
        self._clock.now = min(end, max(self._ends_at, self._clock.now))
        self._clock.now += 1e-5  # an answer takes time
        ended = self._clock.now >= self._ends_at
        job = {"job_id": "x", "state": "DONE" if ended else "QUEUED"}
        return Message({"jobs": [job], "timed_out": not ended})


def test_a_long_wait_is_explained_and_asks_rarely(clock: Clock) -> None:
    job = Job(clock, clock.now + 150)
    explained: list[float] = []
    begin = clock.now
    waited = wait_for_ends(job, ["x"], lambda _: explained.append(clock.now - begin))
    assert (waited.timed_out, waited.jobs[0].state) == (False, "DONE")
    assert job.asked_ms == [EXPLAIN_AFTER_MS, LONGEST_MS, LONGEST_MS, LONGEST_MS]
    assert explained == pytest.approx([2, 62, 122], abs=0.001)


@pytest.mark.parametrize(("timeout_s", "asked"), [(0, [0]), (1.5, [1500]), (2, [2000]), (10, [2000, 8000])])
def test_a_wait_ends_at_its_deadline(clock: Clock, timeout_s: float, asked: list[int]) -> None:
    job = Job(clock, clock.now + 150)
    explained: list[Any] = []
    waited = wait_for_ends(job, ["x"], explained.append, deadline=clock.now + timeout_s)
    assert waited.timed_out
    assert job.asked_ms == asked
    assert len(explained) == len(asked) - 1


def test_an_answer_just_before_the_deadline_is_not_explained(clock: Clock) -> None:
    """It is asked for once more, and nothing is said before anybody has waited for long."""
    job = Job(clock, clock.now + 150, early_s=0.0004)
    explained: list[Any] = []
    assert wait_for_ends(job, ["x"], explained.append, deadline=clock.now + 0.5).timed_out
    assert explained == []
    assert len(job.asked_ms) > 1
