"""What the command line reads without msgspec is what the structs say."""

from __future__ import annotations

import types
import typing
from typing import Any

import msgspec
import pytest

from semtask.client import messages
from semtask.client.messages import PLAIN, Message, Method, json_of
from semtask.protocol.methods import METHODS

USED = {name: method for name, method in vars(messages).items() if isinstance(method, Method)}


def _structs(kind: Any, seen: set[type[msgspec.Struct]]) -> None:
    """All structs that an answer of this type may hold."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind not in seen:
            seen.add(kind)
            for hint in typing.get_type_hints(kind).values():
                _structs(hint, seen)
        return
    for part in typing.get_args(kind):
        _structs(part, seen)


def _is_plain(hint: Any) -> bool:
    """Whether JSON objects of a field are no structs."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return any(map(_is_plain, typing.get_args(hint)))
    return hint is Any or (typing.get_origin(hint) or hint) is dict


@pytest.mark.parametrize("name", USED)
def test_every_answer_has_the_type_of_its_method(name: str) -> None:
    hints = typing.get_type_hints(messages, {**vars(messages), **_protocol()})
    (answer,) = typing.get_args(hints[name])
    wanted = METHODS[USED[name].name].result
    assert answer is wanted or answer in typing.get_args(wanted)


def _protocol() -> dict[str, Any]:
    from semtask.protocol import admin, apps, enqueue, jobs, logs, queues

    return {
        name: value for module in (admin, apps, enqueue, jobs, logs, queues) for name, value in vars(module).items()
    }


def test_fields_with_any_json_are_known() -> None:
    structs: set[type[msgspec.Struct]] = set()
    for method in USED.values():
        _structs(METHODS[method.name].result, structs)
    hints = [pair for struct in structs for pair in typing.get_type_hints(struct).items()]
    assert {name for name, hint in hints if _is_plain(hint)} == PLAIN
    assert not [name for name, hint in hints if name in PLAIN and not _is_plain(hint)]


def test_a_message_has_the_fields_of_its_struct() -> None:
    sent = {"job_id": "x", "waiting": {"reason": "retry", "text": "t"}, "payload": {"a": {"b": 1}},
            "artifacts": [{"name": "n"}], "class": "normal", "new": 1}  # fmt: skip
    job: Any = Message(sent)
    assert (job.job_id, job.waiting.reason, job.artifacts[0].name, job.class_) == ("x", "retry", "n", "normal")
    assert job.payload == {"a": {"b": 1}}
    assert job.exception is None, "an older daemon does not send it"
    assert json_of(job) is sent
    assert not hasattr(job, "__deepcopy__")


def test_a_request_waits_as_long_as_it_says() -> None:
    assert messages.WAIT(job_ids=["x"], timeout_ms=2000).wait_ms == 2000
    assert messages.TAIL(job_id="x", wait_ms=500) == ("logs.tail.v1", {"job_id": "x", "wait_ms": 500}, 500)
    assert messages.GET_JOB(job_id="x").wait_ms == 0
    assert messages.MAINTENANCE().wait_ms > 0
