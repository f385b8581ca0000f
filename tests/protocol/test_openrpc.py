from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from semtask.protocol.methods import METHODS
from semtask.protocol.openrpc import document

DOCUMENT: Any = json.loads(json.dumps(document("1.2.3")))
METHOD = {method["name"]: method for method in DOCUMENT["methods"]}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def properties(schema: Any) -> set[str]:
    return set(schema["properties"])


def test_it_lists_every_method() -> None:
    assert DOCUMENT["openrpc"] == "1.4.0"
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert set(METHOD) == set(METHODS)


def test_every_reference_leads_somewhere_and_nothing_is_left_over() -> None:
    used = set(references(DOCUMENT))
    there = {f"#/components/{kind}/{name}" for kind, items in DOCUMENT["components"].items() for name in items}
    assert used == there


def test_only_served_parameters_appear() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    sent = {param["name"] for param in METHOD["dev.enqueue.v1"]["params"]}
    assert "grace_ms" in sent
    assert not sent & METHODS["dev.enqueue.v1"].unserved
    assert properties(schemas["EnqueueParams"]) == sent
    assert "tag" in properties(schemas["QueryFilter"])
    assert not {"conditions", "depends_on"} & sent
    configured = [param["name"] for param in METHOD["queues.configure.v1"]["params"]]
    assert configured == ["queue", "concurrency", "class", "sandbox"]


def test_parameters_say_what_is_required_and_allowed() -> None:
    params = {param["name"]: param for param in METHOD["dev.enqueue.v1"]["params"]}
    assert params["job_type"]["required"]
    assert not params["queue"]["required"]
    assert params["queue"]["schema"]["pattern"] == "^[A-Za-z0-9_-]{1,64}$"
    assert params["priority"]["schema"]["minimum"] == -100


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_default_of_a_parameter_can_be_sent(method: str) -> None:
    """Of one that can only be left out no default is given: programs are generated from this document."""
    for param in METHOD[method]["params"]:
        if "default" in (schema := param["schema"]):
            field = next(f for f in msgspec.structs.fields(METHODS[method].params) if f.encode_name == param["name"])
            msgspec.json.decode(msgspec.json.encode(schema["default"]), type=field.type)
            assert schema["default"] is not None or "anyOf" in schema, param


def test_a_result_of_two_shapes_names_both() -> None:
    shapes = METHOD["logs.tail.v1"]["result"]["schema"]["anyOf"]
    assert [shape["$ref"].rpartition("/")[2] for shape in shapes] == ["TailedLines", "TailedChunk"]


def test_the_payload_of_a_command_is_described() -> None:
    payload = next(p for p in METHOD["dev.enqueue.v1"]["params"] if p["name"] == "payload")
    assert payload["required"]
    assert payload["schema"]["anyOf"][0]["$ref"].endswith("/CommandPayload")
    assert "command" in properties(DOCUMENT["components"]["schemas"]["CommandPayload"])
