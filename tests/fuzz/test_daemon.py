"""A real daemon against a small model: whatever is asked through the client, in whatever order, with kill -9 between.

Each example has queues, subjects and keys of its own, and all share one daemon, so that an example costs little.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from semtask.client.client import Client
from semtask.errors import Conflict
from semtask.model.job import OnDuplicate
from semtask.model.state import FINAL
from tests.daemon.rig import Daemon, eventually, running_daemon, stop_for_certain
from tests.figures import tell
from tests.fuzz.model import INTERRUPTS, KINDS, SUPERSEDING, Known, at_most_one_runs, call, hold_to_history
from tests.harness.books import contradictions
from tests.harness.ground import Ground
from tests.harness.load import write_apps

LONG = settings.get_current_profile_name() == "long"
EXAMPLES = 300 if LONG else 8
KILLS = 5 if LONG else 1  # of the daemon in an example
CONCURRENCY = 2
QUEUES = ("a", "b")
PLACES = st.integers(0, 1000)  # of a job among those that there are
runs = itertools.count()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Client, Path]]:
    folder = tmp_path_factory.mktemp("model")
    write_apps(folder / "home", "tests.fuzz.work")
    with running_daemon(folder / "home", SEMANTICA_MAX_PROCESSES="6") as daemon:
        with Client(home=daemon.home, autostart=False) as client:
            yield daemon, client, folder / "history"


def test_a_daemon_behaves_like_the_model(served: tuple[Daemon, Client, Path]) -> None:
    daemon, client, history = served
    hold_to_model(daemon, client, history, EXAMPLES)
    wrong = contradictions(daemon.home / "meta.db")
    tell("examples of any requests, held to a model", asked=EXAMPLES, got=next(runs))
    tell("  jobs in them", asked="", got=daemon.stats()["total_jobs"])
    tell("  contradictions in the database", asked=0, got=len(wrong))
    assert not wrong


def test_the_model_finds_a_fault(tmp_path: Path) -> None:
    """Not by chance: the steps that bring it to light are told."""
    ground = Ground(tmp_path, ["what_may_start_once_is_started_again"])
    write_apps(ground.home, "tests.fuzz.work")
    history = tmp_path / "history"

    def starts(count: int) -> bool:
        return history.exists() and history.read_text().count("start") == count

    try:
        ground.revive()
        with Client(home=ground.home, autostart=False) as client:
            machine = machine_of(ground.daemon, client, history)()
            machine.begin()
            machine.enqueue_many(["endless"], "a")
            eventually(lambda: starts(1))
            machine.kill_the_daemon()
            eventually(lambda: starts(2))
            with pytest.raises(AssertionError, match="started twice"):
                machine.teardown()
    finally:
        stop_for_certain(ground.daemon)


def hold_to_model(daemon: Daemon, client: Client, history: Path, examples: int) -> None:
    run_state_machine_as_test(
        machine_of(daemon, client, history),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=set(Phase) - {Phase.shrink},  # with kills in them, examples take too long for that
        ),
    )


def machine_of(daemon: Daemon, client: Client, history: Path) -> type[DaemonMachine]:
    class Machine(DaemonMachine):
        pass

    Machine.daemon, Machine.client, Machine.history = daemon, client, history
    return Machine


class DaemonMachine(RuleBasedStateMachine):
    daemon: Daemon
    client: Client
    history: Path

    def __init__(self) -> None:
        super().__init__()
        self.run = f"run{next(runs)}"
        self.jobs: dict[str, Known] = {}
        self.keys: dict[str, tuple[str, dict[str, Any]]] = {}
        self.paused: set[str] = set()
        self.kills = 0

    # --- to ask for things --------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        for queue in QUEUES:
            self.client.configure_queue(self.name(queue), concurrency=CONCURRENCY)

    def name(self, name: str) -> str:
        return f"{self.run}-{name}"

    @rule(
        kind=st.sampled_from(sorted(KINDS)),
        queue=st.sampled_from(QUEUES),
        once=st.booleans(),
        subject=st.sampled_from([None, None, "s", "t"]),
        on_duplicate=st.sampled_from(list(OnDuplicate)),
    )
    def enqueue(self, kind: str, queue: str, once: bool, subject: str | None, on_duplicate: OnDuplicate) -> None:
        job = self.params(kind, queue, once)
        if subject is not None:
            job |= {"subject_key": self.name(subject), "on_duplicate": on_duplicate}
            subject = f"{subject} of {job['job_type']}"
        self.look()
        before = {job_id: known for job_id, known in self.jobs.items() if subject and known.subject == subject}
        live = [job_id for job_id, known in before.items() if not known.final]
        try:
            answer = self.client.enqueue(**job)
        except Conflict:
            assert live
            assert on_duplicate is OnDuplicate.REJECT
            return
        if answer.deduplicated:
            assert on_duplicate is OnDuplicate.JOIN
            assert answer.job_id in live
            return
        self.jobs[answer.job_id] = self.known(kind, queue, once, subject)
        if subject is not None:
            for job_id in live:
                self.jobs[job_id].superseded |= on_duplicate in SUPERSEDING
                if on_duplicate is OnDuplicate.REJECT:
                    assert self.client.get_job(job_id).state in FINAL, "one that lives was not in the way"

    @rule(number=st.integers(0, 2), kind=st.sampled_from(["ok", "fails", "task"]), queue=st.sampled_from(QUEUES))
    def enqueue_with_a_key(self, number: int, kind: str, queue: str) -> None:
        key = self.name(f"key{number}")
        job = self.params(kind, queue, once=False)
        known = self.keys.get(key)
        try:
            answer = self.client.enqueue(**job, idempotency_key=key)
        except Conflict:
            assert known is not None
            assert known[1] != job
            return
        if known is None:
            assert not answer.deduplicated
            self.keys[key] = answer.job_id, job
            self.jobs[answer.job_id] = self.known(kind, queue, once=False, subject=None)
        else:
            assert (answer.job_id, answer.deduplicated, job) == (known[0], True, known[1])

    @rule(kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4), queue=st.sampled_from(QUEUES))
    def enqueue_many(self, kinds: list[str], queue: str) -> None:
        answers = self.client.enqueue_many([self.params(kind, queue, once=True) for kind in kinds])
        for kind, answer in zip(kinds, answers, strict=True):
            self.jobs[answer.job_id] = self.known(kind, queue, once=True, subject=None)

    def params(self, kind: str, queue: str, once: bool) -> dict[str, Any]:
        options = dict(KINDS[kind].options)
        if once:
            options.pop("max_attempts", None)
        return {
            **call(kind, str(self.history)),
            "queue": self.name(queue),
            "tag": self.run,
            "on_interrupt": INTERRUPTS[once],
            **options,
        }

    def known(self, kind: str, queue: str, once: bool, subject: str | None) -> Known:
        return Known(kind, queue, subject, once, claimed_when_paused=0 if queue in self.paused else None)

    @precondition(lambda self: self.jobs)
    @rule(place=PLACES)
    def cancel(self, place: int) -> None:
        job_id, known = self.one(place)
        self.look()
        was_final = known.final
        answer = self.client.cancel(job_id, grace_ms=0)
        assert answer.cancelled_count == answer.cancelled
        if not answer.cancelled:
            assert answer.ended_as == self.client.get_job(job_id).state in FINAL
        if answer.cancelled:
            assert not was_final
            known.cancelled = True

    @precondition(lambda self: self.jobs)
    @rule(place=PLACES)
    def retry(self, place: int) -> None:
        job_id, known = self.one(place)
        if known.subject or known.kind in {"later", "soon", "stale"}:
            return  # what a copy keeps of these is not in the model
        self.look()
        was_final = known.final
        try:
            answer = self.client.retry(job_id)
        except Conflict:
            assert not was_final, "a finished job can be retried"
            return
        assert answer.retry_of == job_id
        assert answer.job_id is not None
        self.jobs[answer.job_id] = self.known(known.kind, known.queue, known.once, None)

    @precondition(lambda self: self.jobs)
    @rule(place=PLACES)
    def wait(self, place: int) -> None:
        job_id, known = self.one(place)
        answer = self.client.wait([job_id], timeout_ms=150)
        known.see(answer.jobs[0])
        assert known.final or answer.timed_out

    @rule(queue=st.sampled_from(QUEUES))
    def pause(self, queue: str) -> None:
        self.client.pause_queue(self.name(queue))
        self.paused.add(queue)
        for job_id, known in self.jobs.items():
            if known.queue == queue and known.claimed_when_paused is None:
                known.claimed_when_paused = self.client.get_job(job_id).claim_no

    @rule(queue=st.sampled_from(QUEUES))
    def resume(self, queue: str) -> None:
        self.paused.discard(queue)
        for known in self.jobs.values():
            if known.queue == queue:
                known.claimed_when_paused = None
        self.client.resume_queue(self.name(queue))

    @precondition(lambda self: self.kills < KILLS)
    @rule()
    def kill_the_daemon(self) -> None:
        self.kills += 1
        for known in self.jobs.values():
            known.interrupted |= not known.final
        self.daemon.kill()
        self.daemon.start()

    # --- to look ------------------------------------------------------------------------------------------------------

    def one(self, place: int) -> tuple[str, Known]:
        return list(self.jobs.items())[place % len(self.jobs)]

    @invariant()
    def look(self) -> None:
        if self.jobs:
            views = self.client.query_jobs(tag=self.run, limit=200).items
            assert {view.job_id for view in views} == set(self.jobs), "lost, or made of nothing"
            for view in views:
                self.jobs[view.job_id].see(view)
            at_most_one_runs(self.jobs.values(), CONCURRENCY)

    def teardown(self) -> None:
        for queue in QUEUES:
            self.resume(queue)
        self.look()
        for job_id, known in self.jobs.items():
            if known.must_be_cancelled:
                known.cancelled = self.client.cancel(job_id, grace_ms=0).cancelled
        if self.jobs:
            assert not self.client.wait(list(self.jobs), timeout_ms=30_000).timed_out
            self.look()
            hold_to_history(self.jobs, self.history.read_text().splitlines() if self.history.exists() else [])
