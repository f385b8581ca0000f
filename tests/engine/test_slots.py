"""What counts in which limit."""

from __future__ import annotations

from typing import Any

import msgspec

from semtask.engine.slots import Slots
from semtask.model.job import ExecutionMode, Job, OnInterrupt
from semtask.model.state import State

BASE = Job(
    seq=1,
    job_id="01a20785-1766-7443-a093-3674216bd693",
    queue="q",
    job_type="t",
    execution_mode=ExecutionMode.IN_PROCESS,
    state=State.RUNNING,
    payload="{}",
    created_at=0,
    on_interrupt=OnInterrupt.REQUEUE,
    content_hash=b"x",
    claim_no=1,
)


def job(number: int, **fields: Any) -> Job:
    return msgspec.structs.replace(BASE, job_id=f"{BASE.job_id[:-3]}{number:03d}", **fields)


def test_a_sync_worker_takes_one_slot_of_a_queue_for_all_its_jobs_and_one_process() -> None:
    slots = Slots()
    for number in range(5):
        slots.occupy(job(number), worker="w1")
    slots.occupy(job(5, queue="other"), worker="w1")
    assert (slots.busy("q"), slots.busy("other"), slots.processes, slots.running) == (1, 1, 1, 6)
    for number in range(4):
        slots.release(job(number))
    assert slots.busy("q") == 1
    slots.release(job(4))
    assert (slots.busy("q"), slots.busy("other"), slots.processes) == (0, 1, 1)


def test_async_jobs_take_a_slot_each_and_no_process() -> None:
    slots = Slots()
    for number in range(3):
        slots.occupy(job(number), process=False)
    assert (slots.busy("q"), slots.processes) == (3, 0)


def test_a_job_that_waits_for_another_counts_in_no_limit() -> None:
    slots = Slots()
    parent = job(1, subject_key="s")
    slots.occupy(parent, worker="w1")
    slots.block((parent.job_id, 1), blocked=True)
    slots.block((parent.job_id, 1), blocked=True)  # said twice
    assert (slots.busy("q"), slots.processes, slots.running_of("t")) == (0, 0, 0)
    assert slots.holder_of_subject(parent) == parent.job_id  # its lane stays its own
    slots.block((parent.job_id, 1), blocked=False)
    assert (slots.busy("q"), slots.processes, slots.running_of("t")) == (1, 1, 1)
    slots.block((parent.job_id, 1), blocked=True)
    slots.release(parent)
    assert (slots.busy("q"), slots.processes, slots.running_of("t"), slots.running) == (0, 0, 0, 0)


def test_a_release_of_what_holds_nothing_changes_nothing() -> None:
    slots = Slots()
    slots.occupy(job(1), worker="w")
    slots.release(job(2))
    slots.release(job(1, claim_no=2))
    assert slots.busy("q") == 1
