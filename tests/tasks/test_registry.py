"""What an app offers, and its options in the units of the API."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from semtask.tasks.control import Retry
from semtask.tasks.options import TaskOptions
from semtask.tasks.registry import DuplicateTask, Registry, TaskDefinition


def work(path: str) -> int:
    return len(path)


def other(path: str) -> int:
    return len(path)


def test_tasks_are_found_by_name_and_keep_their_order() -> None:
    registry = Registry()
    for name in ("b", "a"):
        registry.add(TaskDefinition(name, work, is_async=False))
    assert [task.name for task in registry] == ["b", "a"]
    found = registry.get("a")
    assert found is not None
    assert found.signature.encode_arguments(("x",), {}) == b'{"path":"x"}'
    assert found.signature is found.signature
    assert registry.get("c") is None


def test_two_tasks_of_one_name_are_refused_with_both_places() -> None:
    registry = Registry()
    registry.add(TaskDefinition("a", work, is_async=False))
    with pytest.raises(DuplicateTask, match=r"'a' is .*\.work \(.*\.other \(.*name="):
        registry.add(TaskDefinition("a", other, is_async=False))
    kept = registry.get("a")
    assert kept is not None
    assert kept.function is work


def test_options_in_the_units_of_the_api() -> None:
    options = TaskOptions.of(
        queue="index",
        retry=Retry(5, base=0.5, factor=3, cap=60),
        timeout=1.5,
        deadline=timedelta(minutes=2),
        ttl=3,
        grace=0,
        retry_on_crash=True,
        concurrency=2,
    )
    assert options.concurrency == 2
    assert options.params == {
        "queue": "index",
        "max_attempts": 5,
        "retry_base_delay_ms": 500,
        "backoff_factor": 3.0,
        "retry_max_delay_ms": 60_000,
        "timeout_ms": 1500,
        "deadline_ms": 120_000,
        "ttl_ms": 3000,
        "grace_ms": 0,
        "retry_on_crash": True,
    }
    assert TaskOptions.of(retry=3).params == {"max_attempts": 3}
    assert TaskOptions().params == {}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": -1}, "timeout must be seconds"),
        ({"timeout": 0}, "timeout is not valid: expected int >= 1 ms; it is 0 ms"),
        ({"deadline": "1m"}, "deadline must be seconds"),
        ({"ttl": float("nan")}, "ttl must be seconds"),
        ({"grace": 61}, "grace is not valid: expected int <= 60000 ms"),
        ({"queue": "a b"}, "queue"),
        ({"priority": 101}, "priority"),
        ({"on_duplicate": "perhaps"}, "on_duplicate"),
        ({"retry": -1}, "retry is not valid"),
        ({"retry": Retry(3, base=-1)}, "base of retry must be"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        TaskOptions.of(**options)
