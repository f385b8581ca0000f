"""Arguments and results go to JSON and come back as what is annotated, or fail where they are given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Required, TypedDict, Unpack
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from semtask.tasks.codec import BadPayload, EncodeError, Signature
from semtask.tasks.forms import UnsupportedType


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


@dataclass
class Point:
    x: int
    y: float = 0.0
    tags: set[str] = field(default_factory=set)


@attrs.define
class Box:
    corner: Point
    name: str | None = None


class Node(msgspec.Struct):
    value: int
    children: list[Node] = []


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict, total=False):
    depth: Required[int]
    follow: bool


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    when: datetime
    amount: Decimal = pydantic.Field(alias="theAmount")
    inner: Inner | None = None


class Inner(pydantic.BaseModel):
    key: UUID


Model.model_rebuild()
UUID_1 = UUID("12345678-1234-5678-1234-567812345678")
NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


def signature_of(function: Callable[..., Any]) -> Signature:
    return Signature(function, "mod:task")


def taking(annotation: Any) -> Signature:
    def task(value):  # type: ignore[no-untyped-def]
        ...

    task.__annotations__ = {"value": annotation, "return": annotation}
    return signature_of(task)


def round_trip(signature: Signature, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    payload = signature.encode_arguments(args, kwargs)
    assert isinstance(json.loads(payload), dict)
    return signature.decode_arguments(payload)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 5),
        (int, 2**70),
        (float, 1.5),
        (str, "é\n"),
        (bool, True),
        (type(None), None),
        (bytes, b"\x00\xff"),
        (bytes | None, None),
        (datetime, NOW),
        (datetime, NOW.replace(tzinfo=None)),
        (date, date(2026, 2, 28)),
        (time, time(23, 59, 1)),
        (timedelta, timedelta(days=3, microseconds=5)),
        (UUID, UUID_1),
        (Decimal, Decimal("1.10")),
        (Colour, Colour.BLUE),
        (Level, Level.LOW),
        (Literal["a", "b"], "b"),
        (Path, Path("/some/where")),
        (Path | None, Path("x")),
        (list[Path], [Path("a"), Path("b")]),
        (dict[Path, int], {Path("a"): 1}),
        (dict[UUID, list[Colour]], {UUID_1: [Colour.RED]}),
        (set[int], {1, 2}),
        (frozenset[str], frozenset({"a"})),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2, 3)),
        (int | str | None, "x"),
        (Point, Point(1, 2.0, {"a"})),
        (Box, Box(Point(1), "b")),
        (Node, Node(1, [Node(2)])),
        (Pair, Pair(1, "r")),
        (Options, {"depth": 1, "follow": True}),
        (dict[str, Point], {"p": Point(1)}),
        (Annotated[int, msgspec.Meta(ge=0)], 4),
        (Model, Model(when=NOW, theAmount=Decimal("1.5"), inner=Inner(key=UUID_1))),
        (list[Model], [Model(when=NOW, theAmount=Decimal(2))]),
        (Any, {"a": [1, None, "x", 1.5, True]}),
    ],
    ids=str,
)
def test_a_value_comes_back_as_what_is_annotated(annotation: Any, value: Any) -> None:
    signature = taking(annotation)
    (), kwargs = round_trip(signature, value)
    assert kwargs == {"value": value}
    assert type(kwargs["value"]) is type(value)
    result = signature.decode_result(signature.encode_result(value))
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value", "why"),
    [
        (int, "5", "expected int, got str"),
        (int, 1.0, "expected int, got float"),
        (int, True, "expected int, got bool"),
        (str, b"x", "expected str, got bytes"),
        (bytes, "x", "expected bytes, got str"),
        (str, UUID_1, "expected str, got UUID"),
        (list[int], [1, "2"], r"expected int, got str \(at value\[1\]\)"),
        (Point, Point("1"), r"expected int, got str \(at value.x\)"),  # type: ignore[arg-type]
        (Point, {"x": 1, "y": None}, "expected Point, got dict"),
        (Annotated[int, msgspec.Meta(ge=0)], -1, "expected int >= 0"),
        (Colour, "green", "expected a Colour, got str"),
        (Model, {"when": 1}, "expected Model, got dict"),
        (Path, 5, "expected Path, got int"),
        (Path, "a", "expected Path, got str"),
        pytest.param(Any, object(), "a object has no JSON form by itself", id="an-object"),
        (Any, [{"a": 1 + 2j}], r"a complex has no JSON form by itself.* \(at value\[0\]\['a'\]\)"),
        (str, "\udc80", "surrogates not allowed"),
        (float, float("nan"), "JSON has no NaN or infinity"),
        (float | None, float("inf"), "JSON has no NaN or infinity"),
        (Any, {"a": [None, {"b": float("-inf")}]}, r"JSON has no NaN or infinity \(at value\['a'\]\[1\]\['b'\]\)"),
        (Point, Point(1, float("nan")), r"JSON has no NaN or infinity \(at value\.y\)"),
    ],
    ids=str,
)
def test_a_wrong_value_fails_at_the_call_and_names_the_argument(annotation: Any, value: Any, why: str) -> None:
    with pytest.raises(EncodeError, match=rf"(?s)argument 'value' of mod:task: .*{why}"):
        taking(annotation).encode_arguments((value,), {})
    with pytest.raises(EncodeError, match="the result of mod:task"):
        taking(annotation).encode_result(value)


def test_a_value_that_contains_itself() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError, match="it contains itself"):
        taking(Any).encode_arguments((endless,), {})


def test_null_is_no_nan() -> None:
    assert round_trip(taking(float | None), None) == ((), {"value": None})
    assert round_trip(taking(str), "null NaN") == ((), {"value": "null NaN"})


def test_a_path_and_a_string_stay_what_they_are() -> None:
    for value in ("a", Path("a"), [Path("a"), "a"]):
        signature = taking(str | os.PathLike[str] | list[str | Path])
        assert round_trip(signature, value) == ((), {"value": value})
    assert round_trip(taking(os.PathLike[str]), Path("a")) == ((), {"value": Path("a")})
    assert taking(str | Path).decode_arguments('{"value": "a"}') == ((), {"value": "a"})


# --- calls -----------------------------------------------------------------------------------------------------------


def everything(a: int, /, b: int = 2, *rest: int, c: int, d: int | None = None, **more: int) -> Any:
    return a, b, rest, c, d, more


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {"c": 3}),
        ((1, 5), {"c": 3}),
        ((1, 5, 6, 7), {"c": 3, "d": 4}),
        ((1,), {"b": 9, "c": 3, "a": 10, "z": 11}),
    ],
)
def test_every_kind_of_parameter(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    back = round_trip(signature_of(everything), *args, **kwargs)
    assert everything(*back[0], **back[1]) == everything(*args, **kwargs)


def test_the_payload_is_one_object_by_parameter_name() -> None:
    payload = signature_of(everything).encode_arguments((1, 5, 6), {"c": 3, "z": 4})
    assert json.loads(payload) == {"a": 1, "b": 5, "rest": [6], "c": 3, "more": {"z": 4}}


def test_a_payload_by_hand_may_leave_out_what_has_a_default() -> None:
    args, kwargs = signature_of(everything).decode_arguments('{"a": 1, "rest": [7], "c": 3}')
    assert everything(*args, **kwargs) == (1, 2, (7,), 3, None, {})


def test_the_order_of_keywords_changes_nothing() -> None:
    def task(a: int, b: int) -> None: ...

    signature = signature_of(task)
    assert signature.encode_arguments((), {"b": 2, "a": 1}) == signature.encode_arguments((1, 2), {})


def test_equal_sets_make_equal_payloads() -> None:
    signature = taking(list[frozenset[str]])
    letters = [chr(code) for code in range(97, 123)]
    payload = signature.encode_arguments(([frozenset(letters)],), {})
    assert payload == signature.encode_arguments(([frozenset(reversed(letters))],), {})
    assert json.loads(payload) == {"value": [letters]}


def test_dicts_keep_their_order() -> None:
    assert taking(dict[str, int]).encode_arguments(({"b": 1, "a": 2},), {}) == b'{"value":{"b":1,"a":2}}'


def test_typed_keywords() -> None:
    def task(**options: Unpack[Options]) -> None: ...

    signature = signature_of(task)
    assert round_trip(signature, depth=3) == ((), {"depth": 3})
    with pytest.raises(EncodeError, match=r"'options'.*expected int, got str"):
        signature.encode_arguments((), {"depth": "3"})


@pytest.mark.parametrize(
    ("args", "kwargs", "why"),
    [
        ((), {}, "missing a required argument: 'path'"),
        (("a", "b"), {}, "too many positional arguments"),
        (("a",), {"path": "b"}, "multiple values for argument 'path'"),
        (("a",), {"forse": True}, "unexpected keyword argument 'forse'"),
    ],
)
def test_a_call_that_python_would_refuse(args: tuple[Any, ...], kwargs: dict[str, Any], why: str) -> None:
    def task(path: str, *, force: bool = False) -> None: ...

    with pytest.raises(TypeError, match=f"mod:task: .*{why}"):
        signature_of(task).encode_arguments(args, kwargs)


# --- stored payloads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ("{}", "'path' is missing; they may come from another version"),
        ('{"file": "a"}', "'path' is missing, 'file' is unknown"),
        ('{"path": "a", "x": 1, "y": 2}', "'x' is unknown, 'y' is unknown"),
        ('{"path": 5}', r"Expected `str`, got `int` - at `\$.path`"),
        ("[]", "Expected `object`, got `array`"),
        ("{", "truncated"),
        (b"\xff", "mod:task"),
    ],
)
def test_a_payload_of_another_version_says_what_does_not_fit(payload: str | bytes, why: str) -> None:
    def task(path: str, *, force: bool = False) -> None: ...

    with pytest.raises(BadPayload, match=why) as caught:
        signature_of(task).decode_arguments(payload)
    assert "mod:task(path: str" in str(caught.value).replace("'", "")


def test_what_a_class_of_the_user_raises_while_it_is_read_is_a_bad_payload() -> None:
    @dataclass
    class Strict:
        x: int

        def __post_init__(self) -> None:
            raise KeyError("no such thing")

    with pytest.raises(BadPayload, match="no such thing"):
        taking(Strict).decode_arguments('{"value": {"x": 1}}')


def test_a_result_of_another_version() -> None:
    with pytest.raises(BadPayload, match="the result does not fit mod:task, which may have changed"):
        taking(int).decode_result('"x"')


# --- annotations -----------------------------------------------------------------------------------------------------


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    def task(a: int) -> None: ...

    task.__annotations__ = {"a": "Missing"}
    with pytest.raises(UnsupportedType, match=r"task mod:task cannot be resolved .*Missing"):
        signature_of(task).encode_arguments((1,), {})


@pytest.mark.parametrize("annotation", [object, None])
def test_no_annotation_is_plain_json(annotation: Any) -> None:
    signature = taking(annotation) if annotation else signature_of(lambda value: value)
    assert round_trip(signature, {"a": [1, 2]}) == ((), {"value": {"a": [1, 2]}})
    with pytest.raises(EncodeError, match=r"a tuple has no JSON form by itself.*pass list.*\(at value\['a'\]\)"):
        signature.encode_arguments(({"a": (1, 2)},), {})


@pytest.mark.parametrize(
    "annotation", [complex, list[complex], Callable[[], int], type, dict[str, tuple[complex, int]]]
)
def test_a_type_without_a_json_form_is_named(annotation: Any) -> None:
    with pytest.raises(UnsupportedType, match="'value' of the task mod:task"):
        taking(annotation).parameters_schema()
    with pytest.raises(UnsupportedType, match="'value' of the task mod:task"):
        taking(annotation).encode_arguments((1,), {})


# --- schemas ---------------------------------------------------------------------------------------------------------


def test_the_schema_is_one_object_with_its_definitions_inside() -> None:
    def task(box: Box, node: Node, model: Model, *, where: Path = Path("x"), depth: int = 3) -> Point:
        raise NotImplementedError

    signature = signature_of(task)
    schema = signature.parameters_schema()
    assert schema["type"] == "object"
    assert schema["required"] == ["box", "node", "model"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["depth"] == {"type": "integer", "default": 3}
    assert schema["properties"]["where"] == {"type": "string", "format": "path", "default": "x"}
    for reference in _references(schema):
        assert reference.removeprefix("#/$defs/") in schema["$defs"], reference
    returns = signature.returns_schema()
    assert returns is not None
    assert returns["properties"]["x"] == {"type": "integer"}
    assert json.loads(json.dumps(schema)) == schema


def test_schemas_of_little() -> None:
    def task() -> None: ...

    signature = signature_of(task)
    assert signature.parameters_schema() == {
        "title": "mod:task",
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }
    assert signature.returns_schema() == {"type": "null"}
    assert signature_of(lambda: 1).returns_schema() is None


def test_the_schema_of_a_recursive_result() -> None:
    schema = taking(Node).returns_schema()
    assert schema is not None
    assert all(reference.removeprefix("#/$defs/") in schema["$defs"] for reference in _references(schema))


def _references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"]] if "$ref" in schema else []
        return own + [found for value in schema.values() for found in _references(value)]
    if isinstance(schema, list):
        return [found for value in schema for found in _references(value)]
    return []
