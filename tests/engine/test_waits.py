"""Who waits for whom: what counts meanwhile, and the circles of those who wait for each other."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from semtask.engine.live import LiveAttempts
from semtask.engine.slots import Slots
from semtask.engine.waits import Waiter, Waits
from semtask.model.job import ClaimFacts, Job
from tests.engine.rig import FailingExecutor, NoWorkers
from tests.engine.test_slots import job

JOBS = 4


def claimed(number: int, **fields: Any) -> Job:
    plain = job(number, queue=f"q{number % 2}", **fields)
    facts = ClaimFacts(daemon_epoch=1, boot_id="b", attempts_id="a", nonce=f"{plain.job_id}.1.{number:016x}")
    return msgspec.structs.replace(plain, claim=facts)


class Ground:
    def __init__(self, *jobs: Job) -> None:
        self.slots, self.live = Slots(), LiveAttempts()
        self.waits = Waits(
            self.slots, self.live, FailingExecutor(), NoWorkers(), lambda key, on: self.slots.block(key, blocked=on)
        )
        for one in jobs:
            self.run(one)

    def run(self, one: Job) -> None:
        self.live.add(one)
        self.slots.occupy(one)

    def end(self, one: Job) -> None:
        key = (one.job_id, one.claim_no)
        self.live.ended(key)
        self.waits.ended(one)
        self.slots.release(one)
        self.live.remove(key)


def waiter(one: Job) -> Waiter:
    assert one.claim is not None
    return Waiter(one.claim.nonce, one.job_id)


STEP = st.tuples(
    st.sampled_from(["ask", "leave", "told", "goes on", "end"]), st.integers(0, JOBS - 1), st.integers(0, 9)
)


@given(st.lists(STEP, max_size=40))
def test_what_counts_can_always_be_recounted_from_what_runs_and_does_not_wait(
    steps: list[tuple[str, int, int]],
) -> None:
    jobs = [claimed(number) for number in range(JOBS)]
    ground = Ground(*jobs)
    running = dict(enumerate(jobs))
    asked: dict[int, list[ExitStack]] = {number: [] for number in range(JOBS)}
    told: set[int] = set()
    for step, number, other in steps:
        mine = asked[number]
        if step == "ask":
            mine.append(ExitStack())
            mine[-1].enter_context(ground.waits.during(waiter(jobs[number]), [jobs[other % JOBS]], enough=1))
        elif step == "leave" and mine:
            mine.pop(other % len(mine)).close()
        elif step == "told" and number in running:
            told.add(number)
            ground.waits.told((jobs[number].job_id, 1), [jobs[other % JOBS].job_id])
        elif step == "goes on" and number in running:
            told.discard(number)
            ground.waits.told((jobs[number].job_id, 1), [])
        elif step == "end" and number in running:
            ground.end(running.pop(number))
            told.discard(number)
        waiting = {n for n in running if n in told or asked[n]}
        recounted = Slots()
        for n, one in running.items():
            if n not in waiting:
                recounted.occupy(one)
        seen = [(s.busy("q0"), s.busy("q1"), s.processes, s.running_of("t")) for s in (ground.slots, recounted)]
        assert seen[0] == seen[1], (step, number)
        assert {n for n in running if ground.waits.why(jobs[n].job_id)} == waiting
    for number in range(JOBS):
        for request in asked[number]:
            request.close()
    assert ground.slots.running == len(running)


def test_a_way_back_is_named_and_a_way_that_only_may_be_one_is_not() -> None:
    a, b, c = (claimed(n) for n in range(3))
    ground = Ground(a, b, c)
    with ground.waits.during(waiter(a), [b], enough=1), ground.waits.during(waiter(b), [c], enough=1):
        assert ground.waits.why(a.job_id) == (False, f"it waits for job {b.job_id}")
        with ground.waits.during(waiter(c), [a, claimed(3)], enough=1):  # either of them will do
            assert ground.waits.why(c.job_id) == (False, f"it waits for job {a.job_id} and 1 more")
        with ground.waits.during(waiter(c), [a, claimed(3)], enough=2):
            between = f"job {a.job_id}, which waits for job {b.job_id}, which waits for it"
            assert ground.waits.why(c.job_id) == (True, f"it waits for {between}; none of them can go on: cancel one")
        with ground.waits.during(waiter(c), [c], enough=1, follows=True):  # a job may look at what it writes
            assert ground.waits.why(c.job_id) is None
    assert ground.waits.why(a.job_id) is None


def test_a_chain_of_thousands_is_followed() -> None:
    jobs = [claimed(n) for n in range(3000)]
    ground = Ground(*jobs)
    for one, other in zip(jobs, [*jobs[1:], jobs[0]], strict=True):
        ground.waits.told((one.job_id, 1), [other.job_id])
    stuck, text = ground.waits.why(jobs[0].job_id) or (False, "")
    assert stuck
    assert text.count("which waits for") == 6
    assert "which waits for another job (2994 of them), which waits for it;" in text
