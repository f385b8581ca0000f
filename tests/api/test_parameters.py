"""Every parameter of METHODS is served or refused by name; everything else that is wrong is explained."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from semtask.protocol.methods import METHODS, Method
from tests.api.running import JOB_ID, Running

# The least that a method, or an object in its parameters, asks for.
LEAST: dict[str, dict[str, Any]] = {
    "dev.enqueue.v1": {"job_type": "shell", "payload": {}},
    "dev.enqueue_many.v1": {"jobs": [{"job_type": "shell", "payload": {}}]},
    "dev.get_job.v1": {"job_id": JOB_ID},
    "dev.wait.v1": {"job_ids": [JOB_ID]},
    "logs.tail.v1": {"job_id": JOB_ID},
    "queues.pause.v1": {"queue": "default"},
    "queues.resume.v1": {"queue": "default"},
    "queues.configure.v1": {"queue": "default"},
    "schedule": {"type": "AFTER"},
    "admin.start_daemon.v1": {"env": {"SEMANTICA_HOME": "/h"}},
}

# A value for each parameter that is not the default.
VALUES: dict[str, Any] = {
    "job_type": "a type",
    "payload": {"a": [1, {"b": "é"}]},
    "queue": "other",
    "execution_mode": "SUBPROCESS",
    "priority": -100,
    "schedule": {"type": "IMMEDIATE"},
    "type": "AT",
    "scheduled_at": 1_800_000_000_000,
    "delay_ms": 5,
    "grace_ms": 60_000,
    "tag": "a tag",
    "chain_group_id": "a group",
    "parent_job_id": JOB_ID,
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "idempotency_key": "a key",
    "on_interrupt": "requeue",
    "durability": "os",
    "subject_key": "a subject",
    "on_duplicate": "join",
    "max_attempts": 3,
    "backoff_factor": 1.5,
    "retry_base_delay_ms": 10,
    "retry_max_delay_ms": 20,
    "retry_on_crash": True,
    "timeout_ms": 1000,
    "deadline": 1_800_000_000_000,
    "ttl_ms": 1000,
    "source": "/srv/shop/tasks.py",
    "conditions": {"wait_for_idle": True},
    "depends_on": [JOB_ID],
    "jobs": [{"job_type": "one", "payload": 1}, {"job_type": "two", "payload": None}],
    "job_id": JOB_ID[:-1] + "2",
    "include": ["payload", "attempts", "result"],
    "dev.wait.v1 include": ["result"],
    "app": "an-app",
    "filter": {"job_type": "x"},
    "filter.state": ["QUEUED", "DONE"],
    "filter.queue": ["a", "b"],
    "created_after": 5,
    "id_suffix": "00ff",
    "subject_key_prefix": "a",
    "sort": "oldest",
    "limit": 200,
    "cursor": "abc",
    "job_ids": [JOB_ID, JOB_ID[:-1] + "3"],
    "mode": "any",
    "dev.wait.v1 timeout_ms": 60_000,
    "lines": 10_000,
    "attempt": 2,
    "stream": "stderr",
    "offset": -5,
    "wait_ms": 30_000,
    "concurrency": 7,
    "class": "background",
    "sandbox": "landlock",
    "force_vacuum": True,
    "env": {"SEMANTICA_HOME": "/other"},
    "umask": 0o022,
}


class Parameter(msgspec.Struct, frozen=True):
    method: Method
    path: tuple[str, ...]
    served: bool

    @property
    def dotted(self) -> str:
        return ".".join(self.path)

    @property
    def value(self) -> Any:
        for key in (f"{self.method.name} {self.dotted}", self.dotted, self.path[-1]):
            if key in VALUES:
                return VALUES[key]
        raise AssertionError(f"give {self.dotted} a value in this table")

    def params(self, value: Any) -> dict[str, Any]:
        """The least parameters with this one."""
        params: dict[str, Any] = copy.deepcopy(LEAST.get(self.method.name, {}))
        owner: Any = params
        for name in self.path[:-1]:
            owner = owner.setdefault(name, LEAST.get(name, {}).copy())
            owner = owner[0] if isinstance(owner, list) else owner
        owner[self.path[-1]] = value
        return params


def parameters() -> Iterator[Parameter]:
    for method in METHODS.values():
        kind = inspect.type_info(method.params)
        assert isinstance(kind, inspect.StructType)
        yield from _of(method, kind, ())
        for name in sorted(method.unserved):
            yield Parameter(method, tuple(name.split(".")), served=False)


def _of(method: Method, kind: inspect.StructType, parents: tuple[str, ...]) -> Iterator[Parameter]:
    for field in kind.fields:
        path = (*parents, field.encode_name)
        yield Parameter(method, path, served=True)
        inner = field.type.item_type if isinstance(field.type, inspect.ListType) else field.type
        if isinstance(inner, inspect.StructType):
            yield from _of(method, inner, path)


ALL = list(parameters())


def test_no_parameter_is_both_served_and_refused() -> None:
    for method in METHODS.values():
        assert not method.unserved & {p.dotted for p in ALL if p.method is method and p.served}


@pytest.mark.parametrize("parameter", ALL, ids=lambda p: f"{p.method.name} {p.dotted}")
def test_each_parameter_is_served_or_refused_by_name(server: Running, parameter: Parameter) -> None:
    with server.unix() as peer:
        if parameter.served:
            reply = peer.rpc(parameter.method.name, parameter.params(parameter.value))
            assert "result" in reply.json, reply.json
            ((operation, received),) = server.operations.calls
            assert operation == parameter.method.operation
            assert read(received, parameter.path) == parameter.value
        else:
            anything: list[Any] = [parameter.value, None, {}, "nonsense", [[]]]
            for value in anything:
                reply = peer.rpc(parameter.method.name, parameter.params(value))
                place = ".".join(parameter.path).replace("jobs.", "jobs[0].")
                assert reply.error["code"] == 4000
                assert reply.error["message"] == f"`{parameter.path[-1]}` is not served by this version"
                assert reply.error["data"]["details"] == {"parameter": place, "path": f"$.{place}"}
            assert server.operations.calls == []


def read(params: Any, path: tuple[str, ...]) -> Any:
    value: Any = msgspec.json.decode(msgspec.json.encode(params))
    for name in path:
        value = value[0][name] if isinstance(value, list) else value[name]
    return value


def test_an_unserved_parameter_deep_in_a_batch_is_found(server: Running) -> None:
    jobs: list[dict[str, Any]] = [{"job_type": "x", "payload": {}} for _ in range(500)]
    jobs[321]["depends_on"] = []
    with server.unix() as peer:
        details = peer.rpc("dev.enqueue_many.v1", {"jobs": jobs}).error["data"]["details"]
    assert details["path"] == "$.jobs[321].depends_on"
    assert server.operations.calls == []


GOOD = LEAST["dev.enqueue.v1"]
BAD: list[tuple[str, Any, str, str]] = [
    ("dev.enqueue.v1", {**GOOD, "priority": "high"}, "$.priority", "expected `int`, got `str` - at `$.priority`"),
    ("dev.enqueue.v1", {**GOOD, "priority": 101}, "$.priority", "expected `int` <= 100"),
    ("dev.enqueue.v1", {**GOOD, "priority": -101}, "$.priority", "expected `int` >= -100"),
    ("dev.enqueue.v1", {**GOOD, "priority": True}, "$.priority", "expected `int`, got `bool`"),
    ("dev.enqueue.v1", {**GOOD, "priorty": 1}, "$.priorty", "no parameter `priorty` (did you mean 'priority'?)"),
    ("dev.enqueue.v1", {**GOOD, "xyzzy": 1}, "$.xyzzy", "there is no parameter `xyzzy` - at `$`"),
    ("dev.enqueue.v1", {"payload": {}}, "$.job_type", "the parameter `job_type` is missing"),
    ("dev.enqueue.v1", {**GOOD, "queue": "a b"}, "$.queue", "expected letters, digits, _ and -, 1 to 64"),
    ("dev.enqueue.v1", {**GOOD, "queue": "a\n"}, "$.queue", "expected letters"),
    ("dev.enqueue.v1", {**GOOD, "queue": "x" * 65}, "$.queue", "expected letters"),
    ("dev.enqueue.v1", {**GOOD, "job_type": ""}, "$.job_type", "length >= 1"),
    ("dev.enqueue.v1", {**GOOD, "job_type": "x" * 129}, "$.job_type", "length <= 128"),
    ("dev.enqueue.v1", {**GOOD, "tag": None}, "$.tag", "expected `str`, got `null`"),
    ("dev.enqueue.v1", {**GOOD, "grace_ms": 60_001}, "$.grace_ms", "<= 60000"),
    ("dev.enqueue.v1", {**GOOD, "execution_mode": "THREAD"}, "$.execution_mode", "one of IN_PROCESS, SUBPROCESS"),
    ("dev.enqueue.v1", {**GOOD, "schedule": {"type": "SOON"}}, "$.schedule.type", "one of AFTER, AT, IMMEDIATE"),
    ("dev.enqueue.v1", {**GOOD, "schedule": {}}, "$.schedule.type", "the parameter `type` is missing"),
    ("dev.enqueue.v1", {**GOOD, "schedule": {"type": "AT", "at": 1}}, "$.schedule.at", "there is no parameter `at`"),
    ("dev.enqueue.v1", {**GOOD, "traceparent": "x"}, "$.traceparent", "expected a W3C traceparent"),
    ("dev.enqueue_many.v1", {"jobs": []}, "$.jobs", "length >= 1"),
    ("dev.enqueue_many.v1", {"jobs": [GOOD, {**GOOD, "tga": "x"}]}, "$.jobs[1].tga", "did you mean 'tag'?"),
    ("dev.enqueue_many.v1", {"jobs": [GOOD, 5]}, "$.jobs[1]", "expected `object`, got `int`"),
    ("dev.enqueue_many.v1", {"jobs": [GOOD] * 10_001}, "$.jobs", "length <= 10000"),
    ("dev.get_job.v1", {"job_id": "7"}, "$.job_id", "expected a job id"),
    ("dev.get_job.v1", {"job_id": JOB_ID, "include": ["logs"]}, "$.include[0]", "one of attempts, payload, result"),
    ("dev.query_jobs.v1", {"filter": {"state": ["DONE", "done"]}}, "$.filter.state[1]", "SCHEDULED, QUEUED"),
    ("dev.query_jobs.v1", {"limit": 201}, "$.limit", "<= 200"),
    ("dev.wait.v1", {"job_ids": [JOB_ID] * 1001}, "$.job_ids", "length <= 1000"),
    ("dev.wait.v1", {"job_ids": [JOB_ID], "timeout_ms": 60_001}, "$.timeout_ms", "<= 60000"),
    ("queues.list.v1", {"queue": "x"}, "$.queue", "there is no parameter `queue`"),
    ("rpc.discover", {"x": 1}, "$.x", "there is no parameter `x`"),
]


@pytest.mark.parametrize(("method", "params", "path", "text"), BAD, ids=[f"{m} {p} {t}"[:70] for m, _, p, t in BAD])
def test_what_is_wrong_is_named(server: Running, method: str, params: Any, path: str, text: str) -> None:
    with server.unix() as peer:
        error = peer.rpc(method, params).error
    assert (error["code"], error["data"]["kind"]) == (4000, "VALIDATION_ERROR")
    assert error["data"]["details"] == {"parameter": path[2:], "path": path}
    assert text in error["message"]
    assert server.operations.calls == []


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def test_a_payload_has_at_most_64_levels_wherever_it_lies(server: Running) -> None:
    good, bad = {**GOOD, "payload": nested(64)}, {**GOOD, "payload": nested(65)}
    with server.unix() as peer:
        assert "result" in peer.rpc("dev.enqueue.v1", good).json
        assert "result" in peer.rpc("dev.enqueue_many.v1", {"jobs": [good]}).json
        one = peer.rpc("dev.enqueue.v1", bad).error["data"]["details"]
        many = peer.rpc("dev.enqueue_many.v1", {"jobs": [good, bad]}).error["data"]["details"]
    assert (one["path"], many["path"]) == ("$.payload", "$.jobs[1].payload")
    assert server.operations.names() == ["enqueue", "enqueue_many"]


def test_an_endless_name_is_not_given_back(server: Running) -> None:
    with server.unix() as peer:
        assert len(peer.rpc("dev.enqueue.v1", {**GOOD, "x" * 1_000_000: 1}).body) < 1000
        assert len(peer.rpc("m" * 1_000_000).body) < 1000


# --- by position -----------------------------------------------------------------------------------------------------


def test_an_array_has_the_parameters_in_the_order_of_the_reference_page(server: Running) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text()
    with server.unix() as peer:
        for name, method in METHODS.items():
            section = page.partition(f"### `{name}`\n")[2].partition("\n### ")[0].partition("**Answer")[0]
            documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
            fields = [field.encode_name for field in inspect.type_info(method.params).fields]  # type: ignore[attr-defined]
            assert [field for field in documented if field in fields][: len(fields)] == fields
            too_many = peer.rpc(name, [None] * (len(fields) + 1))
            assert too_many.error["code"] == -32602
            assert f"this method has {len(fields)}" in too_many.error["message"]
        assert peer.rpc("admin.stats.v1", []).status == 200
        assert "result" in peer.rpc("admin.stats.v1", []).json
        server.operations.calls.clear()
        assert "result" in peer.rpc("dev.enqueue.v1", ["shell", {"a": 1}, "other"]).json
        assert "result" in peer.rpc("dev.get_job.v1", [JOB_ID]).json
        assert "result" in peer.rpc("admin.maintenance.v1", [True]).json
        (_, enqueued), (_, looked), (_, maintained) = server.operations.calls
        assert (enqueued.job_type, bytes(enqueued.payload), enqueued.queue) == ("shell", b'{"a":1}', "other")
        assert looked.job_id == JOB_ID
        assert maintained.force_vacuum
        missing = peer.rpc("dev.enqueue.v1", ["shell"])
        assert (missing.error["code"], missing.error["data"]["details"]["parameter"]) == (4000, "payload")
