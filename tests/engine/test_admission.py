"""From a request to new jobs: nothing that was asked for is lost, and nothing is done twice."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

from semtask.api.access import Access, require_for
from semtask.api.parameters import ParameterReader
from semtask.engine.admission import Admission
from semtask.engine.command_gate import CommandGate
from semtask.errors import ValidationError
from semtask.executors.base import CommandSpec
from semtask.host.command_policy import PolicyFile
from semtask.model import outcome
from semtask.model.identifiers import JobIds
from semtask.model.job import (
    Durability,
    ExecutionMode,
    Job,
    NewJob,
    OnDuplicate,
    OnInterrupt,
    ProcessIdentity,
    Schedule,
    StoredOptions,
)
from semtask.model.option import declared
from semtask.model.outcome import Outcome
from semtask.model.scope import Scope
from semtask.model.state import State
from semtask.protocol.enqueue import EnqueueManyParams, EnqueueParams
from semtask.protocol.frames import TaskInfo
from semtask.protocol.methods import METHODS
from tests.engine.rig import DEFAULTS, beating

NOW = 1_800_000_000_000
PARENT = "01a207a1-0000-7000-8000-000000000000"
# A value of each option that is not its default. A new option needs one.
VALUES: dict[str, Any] = {
    "job_type": "other",
    "payload": msgspec.Raw(b'{"b":2}'),
    "queue": "q",
    "execution_mode": ExecutionMode.IN_PROCESS,
    "priority": 7,
    "tag": "a tag",
    "chain_group_id": "a group",
    "parent_job_id": PARENT,
    "subject_key": "a subject",
    "idempotency_key": "a key",
    "max_attempts": 4,
    "backoff_factor": 3.5,
    "retry_base_delay_ms": 17,
    "retry_max_delay_ms": 18_000,
    "retry_on_crash": True,
    "timeout_ms": 19,
    "deadline": NOW + 20,
    "ttl_ms": 21,
    "grace_ms": 22,
    "on_interrupt": OnInterrupt.FAIL,
    "source": "/srv/tasks.py",
}
ONE_BY_ONE = sorted(VALUES)


class NoTasks:
    """Nobody offers a task, so any payload will do."""

    def task(self, name: str) -> TaskInfo | None:
        return None

    def check(self, task: str, payload: bytes, source: str | None) -> None: ...


@pytest.fixture
def admission() -> Admission:
    return new_admission()


def new_admission(now: Callable[[], int] = lambda: NOW) -> Admission:
    return Admission(
        new_id=JobIds(now, bytes).new, now_ms=now, max_payload_bytes=1000, retry_base_delay_ms=1234, tasks=NoTasks()
    )


def task(**options: Any) -> EnqueueParams:
    least = {"job_type": "t", "payload": msgspec.Raw(b"{}"), "execution_mode": ExecutionMode.IN_PROCESS}
    return EnqueueParams(**{**least, **options})


def stored(new: NewJob) -> Job:
    kept = {name: value for name, value in msgspec.structs.asdict(new).items() if name in Job.__struct_fields__}
    return Job(seq=1, state=State.FAILED, **kept)


def test_every_option_that_a_job_keeps_has_a_value_here() -> None:
    assert VALUES.keys() == set(StoredOptions.__struct_fields__) == {option.name for option in declared(StoredOptions)}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_each_option_reaches_the_job_and_the_copy_that_a_retry_makes(admission: Admission, name: str) -> None:
    job = admission.admit(task(**{name: VALUES[name]}))
    wanted = '{"b":2}' if name == "payload" else VALUES[name]
    assert getattr(job, name) == wanted
    copy = admission.copy(stored(job))
    assert getattr(copy, name) == (None if name == "idempotency_key" else wanted)
    assert (copy.retry_of, copy.content_hash) == (job.job_id, None)
    assert copy.job_id != job.job_id


def test_what_was_left_out_has_its_value(admission: Admission) -> None:
    job = admission.admit(task())
    assert (job.on_interrupt, job.retry_base_delay_ms, job.on_duplicate) == (OnInterrupt.REQUEUE, 1234, None)
    command = admission.admit(
        task(execution_mode=None, payload=msgspec.Raw(b'{"command":"true"}'), source="s", subject_key="k")
    )
    assert (command.execution_mode, command.on_interrupt) == (ExecutionMode.SUBPROCESS, OnInterrupt.FAIL)
    assert (command.source, command.on_duplicate) == (None, OnDuplicate.SUPERSEDE)


def test_a_copy_counts_its_deadline_anew() -> None:
    now = NOW
    admission = new_admission(lambda: now)
    job = admission.admit(task(deadline=NOW + 500))
    now += 7000
    assert admission.copy(stored(job)).deadline == NOW + 7500


def test_only_a_key_needs_the_hash_of_what_it_protects(admission: Admission) -> None:
    assert admission.admit(task()).content_hash is None
    one, other, again = (
        admission.admit(task(idempotency_key="k", payload=msgspec.Raw(text)))
        for text in (b'{"a":1,"b":2}', b'{"a":2,"b":2}', b'{ "b": 2, "a": 1 }')
    )
    assert one.content_hash
    assert one.content_hash == again.content_hash != other.content_hash


OF_ONE_REQUEST: dict[str, Any] = {
    **VALUES,
    "payload": msgspec.Raw(b'{"command":"true"}'),
    "execution_mode": None,
    "schedule": Schedule(type="AFTER", delay_ms=5),
    "on_duplicate": OnDuplicate.JOIN,
    "durability": Durability.OS,
    "traceparent": f"00-{'1' * 32}-{'2' * 16}-01",
}


@pytest.mark.parametrize("name", sorted(OF_ONE_REQUEST))
@pytest.mark.parametrize("mode", [None, ExecutionMode.IN_PROCESS])
def test_jobs_of_one_request_that_differ_are_admitted_as_each_of_them_alone(
    name: str, mode: ExecutionMode | None
) -> None:
    usual: dict[str, Any] = {"execution_mode": mode, "subject_key": "s"}
    other = {**usual, name: OF_ONE_REQUEST[name]}
    many = [task(**options) for options in (usual, usual, other, other, usual)]
    alone = new_admission()
    assert new_admission().admit_many(many) == [alone.admit(one) for one in many]


def test_every_option_is_tried_in_one_request() -> None:
    assert OF_ONE_REQUEST.keys() == set(EnqueueParams.__struct_fields__)


def test_an_error_names_the_job_of_the_request(admission: Admission) -> None:
    with pytest.raises(ValidationError, match=r"^jobs\[2\]: `deadline` \(5\) is not later than now") as refused:
        admission.admit_many([task(), task(), task(deadline=5)])
    assert refused.value.details == {"parameter": "jobs[2].deadline"}


# --- how often a command is decoded -----------------------------------------------------------------------------------


@contextmanager
def decodings() -> Iterator[list[str]]:
    """Where API, engine and the messages of an enqueue decode JSON, in all threads from now on."""
    found: list[str] = []

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and argument.__name__ in {"decode", "json_decode"} and _is_of_msgspec(argument):
            place = frame.f_code.co_filename
            if any(part in place for part in ("/semtask/api/", "/semtask/engine/", "/semtask/protocol/enqueue.py")):
                found.append(f"{Path(place).name}:{frame.f_code.co_name}")

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _is_of_msgspec(function: Any) -> bool:
    owner = function.__self__
    return isinstance(owner, msgspec.json.Decoder) or getattr(owner, "__name__", "") == "msgspec._core"


def test_a_command_is_decoded_once_for_all_who_look_at_it_before_it_is_stored(
    admission: Admission, tmp_path: Path
) -> None:
    """With everything that may look: a token with few rights, no execution_mode, an idempotency key, and a policy."""
    policy = tmp_path / "commands.toml"
    policy.write_text('deny = [["false"]]\n')
    policy.chmod(0o600)
    gate = CommandGate(PolicyFile(policy), DEFAULTS, hold=lambda problem: None)
    access = Access(frozenset({Scope.READ, Scope.ENQUEUE, Scope.COMMAND}), "few")
    reader = ParameterReader(METHODS["dev.enqueue_many.v1"])
    one = {"job_type": "c", "payload": {"command": "true", "access": ["read"]}}
    request = msgspec.json.encode({"jobs": [{**one, "idempotency_key": str(number)} for number in range(3)]})
    with decodings() as found:
        params = reader.read(msgspec.Raw(request))
        assert isinstance(params, EnqueueManyParams)
        require_for(params, access)
        jobs = admission.admit_many(params.jobs)
        asyncio.run(gate.check({n: params.jobs[n].command for n in range(len(jobs))}, of=len(jobs)))
    assert [job.execution_mode for job in jobs] == [ExecutionMode.SUBPROCESS] * 3
    assert found == ["parameters.py:read", *["enqueue.py:command_of"] * 3]


def test_a_command_is_decoded_once_for_an_attempt(tmp_path: Path) -> None:
    async def scene() -> Job:
        async with beating(tmp_path / "home", OneCommand()) as heart:
            await heart.insert(payload='{"command":"true"}')
            return await heart.until(lambda job: job.state is State.DONE)

    with decodings() as found:
        job = asyncio.run(scene())
    assert job.attempts == 1
    assert found == ["enqueue.py:command_of"]


class OneCommand:
    """Each command succeeds."""

    async def run(self, spec: CommandSpec, on_started: Callable[[ProcessIdentity], None]) -> Outcome:
        return outcome.of_command(0)

    def stop(self, job_id: str, claim_no: int, reason: object, grace_ms: int) -> None: ...
    def job_of(self, pid: int) -> None: ...
