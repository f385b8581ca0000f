"""A payload is checked against the schema of its task before it is stored."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pytest

from semtask.engine.signatures import Arguments


class Color(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: float = 0.0


class Tree(msgspec.Struct):
    value: int
    children: list[Tree] = []


def schema_of(**types: Any) -> dict[str, Any]:
    struct = msgspec.defstruct("P", list(types.items()), kw_only=True, forbid_unknown_fields=True)
    (root,), definitions = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    return {**definitions.pop(root["$ref"].rpartition("/")[2]), "$defs": definitions}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, "1", '"1"'),
        (float, "1.5", "null"),
        (str, '"a"', "1"),
        (bool, "true", "1"),
        (bytes, '"aGVsbG8="', '"not base64!"'),
        (datetime.date, '"2026-01-01"', '"yesterday"'),
        (datetime.timedelta, '"PT1S"', '"one"'),
        (uuid.UUID, '"01a20785-1766-7443-a093-3674216bd693"', '"x"'),
        (decimal.Decimal, '"1.50"', '"x"'),
        (Color, '"red"', '"blue"'),
        (Literal[1, 2], "2", "3"),
        (list[int], "[1]", '["a"]'),
        (set[int], "[1]", '["a"]'),
        (tuple[int, str], '[1,"a"]', '["a",1]'),
        (tuple[int, ...], "[1,2]", '["a"]'),
        (dict[str, int], '{"a":1}', '{"a":"b"}'),
        (int | None, "null", '"a"'),
        (Point, '{"x":1}', '{"y":1}'),
        (list[Point], '[{"x":1}]', '[{"x":"1"}]'),
        (Tree, '{"value":1,"children":[{"value":2}]}', '{"value":"1"}'),
        (Annotated[int, msgspec.Meta(ge=1)], "1", "0"),
        (Any, '{"what":["ever"]}', None),
    ],
)
def test_each_kind_of_argument(kind: Any, good: str, bad: str | None) -> None:
    arguments = Arguments(schema_of(a=kind))
    assert arguments.problem(f'{{"a":{good}}}'.encode()) is None
    if bad is not None:
        problem = arguments.problem(f'{{"a":{bad}}}'.encode())
        assert problem is not None
        assert "$.a" in problem


def test_missing_and_unknown_arguments_are_named() -> None:
    arguments = Arguments({**schema_of(path=str, lines=int), "additionalProperties": False})
    assert "`path`" in str(arguments.problem(b'{"lines":1}'))
    assert "`force`" in str(arguments.problem(b'{"path":"a","lines":1,"force":true}'))
    assert arguments.problem(b"[]") is not None


def test_a_parameter_may_have_any_name_and_may_be_left_out() -> None:
    schema = {
        "type": "object",
        "properties": {"from": {"type": "integer"}, "f0": {"type": "string"}},
        "required": ["f0"],
    }
    arguments = Arguments(schema)
    assert arguments.problem(b'{"f0":"x"}') is None
    assert arguments.problem(b'{"f0":"x","from":"y"}') is not None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "object", "properties": {}}, {"type": "object"}]}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/nowhere"}}},
        {"type": "object", "properties": {"a": {"type": ["integer", "string"]}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
        {"type": "what"},
    ],
)
def test_what_has_no_counterpart_is_left_to_the_worker(schema: dict[str, Any]) -> None:
    assert Arguments(schema).problem(b'{"a":{}}') is None or "a" in schema["properties"]
    assert Arguments(schema).problem(b"{}") is None
