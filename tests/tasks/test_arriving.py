"""An argument, and a result, arrives as an equal value of the same type, or is refused where it is given."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semtask.tasks.codec import BadPayload, EncodeError, Signature
from tests.tasks import arriving
from tests.tasks.arriving import (
    Access,
    Base,
    Boxed,
    Cached,
    Cat,
    Checked,
    Circle,
    Colour,
    Converted,
    Counting,
    Derived,
    Dog,
    Forbidding,
    Frozen,
    Initialised,
    Items,
    Level,
    Loose,
    Mixed,
    Options,
    Owner,
    Part,
    Point,
    Priced,
    Row,
    Shape,
    Slot,
    SmallPart,
    Stepping,
    SubInt,
    SubStr,
    Tree,
    UserId,
    Validated,
    Whole,
    WithLock,
    runs,
    same,
)

KEY = UUID(int=1)
DAY, MOMENT = date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC)
FAR = timezone(timedelta(hours=5, minutes=30))


def taking(annotation: Any) -> Signature:
    def task(value):  # type: ignore[no-untyped-def]
        ...

    task.__annotations__ = {"value": annotation, "return": annotation}
    return Signature(task, "mod:task")


def arrivals(annotation: Any, value: Any) -> list[Any]:
    """The value as an argument and as a result, from where they are read."""
    signature = taking(annotation)
    payload = signature.encode_arguments((value,), {})
    json.loads(payload)
    _, kwargs = signature.decode_arguments(payload)
    return [kwargs["value"], signature.decode_result(signature.encode_result(value))]


whole = Whole(shown=1, theName=2, more=[1], part=Priced(cents=3, words="a,b"))  # type: ignore[call-arg,arg-type]
whole.hidden = 7
cached = Cached(4)
cached.double  # noqa: B018 - kept by it from now on

ARRIVE: list[tuple[Any, Any]] = [
    # unions
    (UUID | str, KEY),
    (UUID | str, "text"),
    (UUID | str, str(KEY)),
    (str | UUID | None, None),
    (date | datetime, DAY),
    (date | datetime, MOMENT),
    (date | str, "2026-01-02"),
    (str | bytes, "YWJj"),
    (str | bytes, b"abc"),
    (str | Path, Path("a")),
    (Colour | str, "red"),
    (Colour | str, Colour.RED),
    (Level | int, 1),
    (Level | int, Level.LOW),
    (Literal["a"] | int, "a"),
    (int | float, 1),
    (int | float, 1.0),
    (int | bool, True),
    (int | bool | Decimal, Decimal("1.0")),
    (Base | Derived, Base(1)),
    (Base | Derived, Derived(1, 2)),
    (Base | Part | None, Part(size=1)),
    (Part | SmallPart, SmallPart()),
    (Shape | Circle, Circle(1)),
    (list[Base | Derived], [Base(1), Derived(2)]),
    (dict[str, Base | Options], {"a": {"depth": 1}, "b": Base(1)}),
    (list[int] | list[str], ["a"]),
    (list[int] | list[str], []),
    (list[int] | set[int], {1}),
    (list[int] | tuple[int, ...], (1,)),
    (dict[str, Any] | Base, {"x": 1}),
    (dict[str, Any] | Base, {"$type": "Base", "$value": {"x": 1}}),
    (dict[str, Any] | Base, Base(1)),
    (Any | date, DAY),
    (Any | date, "2026-01-02"),
    # containers
    (Counter[str], Counter("aab")),
    (deque[int], deque([1, 2])),
    (OrderedDict[str, date], OrderedDict(b=DAY, a=DAY)),
    (Sequence[int], [1]),
    (Mapping[str, int], {"b": 1, "a": 2}),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[float, int], {1.5: 1}),
    (dict[date, int], {DAY: 1}),
    (dict[Level, int], {Level.LOW: 1}),
    (dict[Colour, int], {Colour.RED: 1}),
    (dict[Mixed, int], {Mixed.ONE: 1, Mixed.TEXT: 2}),
    (dict[UserId, int], {UserId(3): 1}),
    (dict, {"a": [1, None]}),
    (list, [1, "a", 1.5]),
    (tuple[()], ()),
    (set[date], {DAY, date(2027, 1, 1)}),
    (set[UUID | str], {KEY, "a"}),
    (frozenset[Point], frozenset({Point(1), Point(2)})),
    (tuple[int, Base | None], (1, None)),
    # leaves
    (int, 2**80),
    (Any, [2**80, -(2**70), 0.1, -0.0, 1e300, True]),
    (float, -0.0),
    (Decimal, Decimal("-0E+3")),
    (Decimal, Decimal("Infinity")),
    (datetime, MOMENT),
    (datetime, MOMENT.astimezone(FAR)),
    (datetime, datetime(2026, 1, 2, microsecond=1)),  # noqa: DTZ001
    (time, time(1, 2, tzinfo=UTC)),
    (timedelta, timedelta.max),
    (timedelta, -timedelta(microseconds=1)),
    (bytearray, bytearray(b"\x00")),
    (PurePosixPath, PurePosixPath("/a")),
    (Access, Access.READ | Access.WRITE),
    (Access, Access(0)),
    (Mixed, Mixed.PAIR),
    (Mixed, Mixed.TEXT),
    (Literal[True, "a", b"x", Colour.RED], b"x"),
    (Literal[True, "a", b"x", Colour.RED], Colour.RED),
    (Literal[1, "1"], "1"),
    (Annotated[list[Base], msgspec.Meta(min_length=1)], [Base(1)]),
    (str, "null NaN \u2028 \U0001f600 \x00"),
    # classes
    (Derived, Derived(1, 2)),
    (Counting, Counting(1)),
    (list[Counting | None], [Counting(1), None]),
    (WithLock, WithLock(Path("a"))),
    (Initialised, Initialised(1, 2)),
    (Frozen, Frozen(a=MOMENT, b=(1, 2))),
    (Cached, cached),
    (Boxed[int], Boxed(1)),
    (Boxed[date | datetime], Boxed(DAY)),
    (Tree, Tree(KEY, [Tree("a"), Tree(str(KEY))])),
    (Shape, Shape(1)),
    (Shape, Shape(1, [2])),
    (Point, Point(1, 2)),
    (Stepping, Stepping(1)),
    (Converted, Converted(1, 5)),
    (Checked, Checked(1, MOMENT)),
    (Row, Row(1)),
    (Row, Row(1, MOMENT)),
    (Options, {"depth": 1}),
    (Options, {"follow": True, "depth": 1}),
    (Loose, {}),
    (Loose, {"when": DAY}),
    (Part, Part()),
    (Part, Part(size=None)),
    (Part, Part.model_construct(name="a")),
    (Priced, Priced(cents=1, words="a,b")),  # type: ignore[arg-type]
    (Whole, whole),
    (list[Whole], [whole, Whole(shown=1)]),
    (Items, Items([Part()])),
    (Slot[int], Slot[int](content=1)),
    (Slot[Part], Slot[Part](content=Part())),
    (Owner, Owner(pet=Dog(), home=pydantic.HttpUrl("http://a/"))),
    (Owner, Owner(pet=Cat(lives=2))),
    (Forbidding, Forbidding(theX=1)),
    (Validated, Validated(1)),
]


@pytest.mark.parametrize(("annotation", "value"), ARRIVE, ids=range(len(ARRIVE)))
def test_it_arrives_as_it_is_and_no_code_of_its_class_has_run(annotation: Any, value: Any) -> None:
    before = runs.copy()
    for arrived in arrivals(annotation, value):
        assert same(arrived, value), arrived
        if isinstance(value, Counting):
            assert vars(arrived) == vars(value)
    more = runs - before
    for name in ("WithLock", "Stepping"):  # what cannot be had otherwise: once where it is read, never where it is sent
        assert more.pop(name, 0) == (2 if type(value).__name__ == name else 0)
    assert not more


@pytest.mark.parametrize(
    ("annotation", "value", "why"),
    [
        (str, SubStr("a"), r"expected str, got SubStr; pass str\(value\)"),
        (str, Colour.RED, r"expected str, got Colour; pass str\(value\)"),
        (int, SubInt(1), r"expected int, got SubInt; pass int\(value\)"),
        (int, Level.LOW, "expected int, got Level"),
        (int, True, "expected int, got bool$"),
        (Any, {"a": SubStr("b")}, r"SubStr.*\(at value\['a'\]\)"),
        (Any, [Level.LOW], "Level"),
        (Any, OrderedDict(a=1), "OrderedDict"),
        (Any, Counter("a"), "Counter"),
        (Any, defaultdict(int), "defaultdict"),
        (Any, {1: 1, "1": 2}, "the key 1 is a int"),
        (Any, {True: 1}, "the key True is a bool"),
        (Any, (1, 2), r"pass list\(value\)"),
        (Any, {1}, "a set has no JSON form"),
        (Any, DAY, "a date has no JSON form by itself.*annotate"),
        (Any, b"a", "a bytes has no JSON form"),
        (Any, KEY, "a UUID has no JSON form"),
        (Any, Path("a"), "a PosixPath has no JSON form"),
        (Any, range(3), "a range has no JSON form"),
        (Any, Base(1), "a Base has no JSON form"),
        (Any, [math.nan], "NaN"),
        (Any, "a\ud800", "lone surrogate"),
        (dict[str, Any], {"a": {2: 1}}, r"the key 2 is a int.*\(at value\['a'\]\)"),
        (dict[str, int], {1: 1}, "expected str, got int"),
        (dict[int, int], {1: 1, "1": 2}, "expected int, got str"),
        (dict[str, int], OrderedDict(a=1), r"pass dict\(value\)"),
        (list[int], (1,), r"expected list, got tuple; pass list\(value\)"),
        (Sequence[int], (1,), r"expected list, got tuple; pass list\(value\)"),
        (tuple[int, ...], [1], r"pass tuple\(value\)"),
        (tuple[int, int], (1, 2, 3), "expected a tuple of 2, got one of 3"),
        (tuple[int, ...], Row(1), "got Row"),
        (deque[int], deque([1], maxlen=3), "maxlen"),
        (float, 2**53 + 1, "no float equals this int"),
        (float, 10**400, "no float equals this int"),
        (datetime, MOMENT.astimezone(ZoneInfo("Europe/Berlin")), r"Europe/Berlin.*value\.astimezone\(UTC\)"),
        (datetime, datetime(2026, 1, 2, fold=1), "fold"),  # noqa: DTZ001
        (datetime, MOMENT.astimezone(timezone(timedelta(seconds=7))), "no whole minutes"),
        (date, MOMENT, "expected date, got datetime"),
        (Path, "a", "expected Path, got str"),
        (Path, PurePosixPath("a"), "expected Path, got PurePosixPath"),
        (Path, Path("a\udc80"), "lone surrogate"),
        (Literal[1], True, "expected one of 1, got True"),
        (Literal["a"], SubStr("a"), "expected one of 'a'"),
        (Base, Derived(1), r"a Derived would arrive as a Base.*annotate it as Derived, or as Base \| Derived"),
        (list[Base], [Base(1), Derived(1)], r"a Derived would arrive as a Base.*\(at value\[1\]\)"),
        (Boxed[Base], Boxed(Derived(1)), r"a Derived would arrive as a Base.*\(at value\.content\)"),
        (Shape, Circle(1), "a Circle would arrive as a Shape"),
        (Part, SmallPart(), "a SmallPart would arrive as a Part"),
        (dict[str, Part], {"a": SmallPart()}, "a SmallPart would arrive as a Part"),
        (Whole, Whole(shown=1, part=SmallPart()), "expected Part or Priced or None, got SmallPart"),
        (Options, {"depth": 1, "more": 2}, "Options has no key 'more', which would be lost"),
        (Options, {}, "the key 'depth' of Options is missing"),
        (Options, OrderedDict(depth=1), "expected a dict as Options"),
        (Part, Part.model_construct(size="large"), r"expected int or None, got str \(at value\.size\)"),
        (UUID | str, 5, "expected UUID or str, got int"),
        (Base | Derived, Part(), "expected Base or Derived, got Part"),
    ],
    ids=str,
)
def test_what_would_arrive_otherwise_is_refused(annotation: Any, value: Any, why: str) -> None:
    with pytest.raises(EncodeError, match=rf"(?s)argument 'value' of mod:task: .*{why}"):
        taking(annotation).encode_arguments((value,), {})
    with pytest.raises(EncodeError, match="the result of mod:task: "):
        taking(annotation).encode_result(value)


def test_an_attribute_that_is_no_field() -> None:
    changed = Base(1)
    changed.colour = "red"  # type: ignore[attr-defined]
    with pytest.raises(EncodeError, match="the attribute 'colour' of a Base is no field of it, and would be lost"):
        taking(Base).encode_arguments((changed,), {})


def test_json_by_hand_is_constructed_once_with_all_checks() -> None:
    before = runs.copy()
    _, kwargs = taking(Priced).decode_arguments('{"value": {"cents": 1, "words": "a,b"}}')
    assert (kwargs["value"].cents, kwargs["value"].words) == (100, ["a", "b"])
    _, kwargs = taking(Counting).decode_arguments('{"value": {"x": 1}}')
    assert (kwargs["value"].x, kwargs["value"].total) == (2, 2)
    _, kwargs = taking(Initialised).decode_arguments('{"value": {"x": 1, "y": 1}}')
    assert kwargs["value"] == Initialised(1, 1)
    _, kwargs = taking(Converted).decode_arguments('{"value": {"x": 2, "_hidden": 1}}')
    assert kwargs["value"] == Converted(2, 1)
    assert runs["Priced"] - before["Priced"] == 1
    for annotation, payload in ((Checked, {"x": 0}), (Forbidding, {"x": 1}), (Base | Derived, {"z": 1})):
        with pytest.raises(BadPayload):
            taking(annotation).decode_arguments(json.dumps({"value": payload}))


def test_a_union_by_hand_is_read_by_its_shape_or_its_name() -> None:
    signature = taking(Base | Derived)
    for payload, expected in (
        ({"x": 1}, Base(1)),
        ({"x": 1, "y": 2}, Derived(1, 2)),
        ({"$type": "Derived", "$value": {"x": 1}}, Derived(1)),
    ):
        assert signature.decode_arguments(json.dumps({"value": payload})) == ((), {"value": expected})


def test_every_schema_can_be_made() -> None:
    for annotation, value in ARRIVE:
        schema = taking(annotation).parameters_schema()
        assert json.loads(json.dumps(schema)) == schema
        assert schema["properties"].keys() == {"value"}, value


# --- any value of any type -------------------------------------------------------------------------------------------


def _union(kinds: list[Any]) -> Any:
    return Union[tuple(kinds)]  # noqa: UP007


_texts = st.text(max_size=8)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)
_anything = st.one_of(
    _json,
    st.tuples(st.integers()),
    st.sets(st.integers(), max_size=3),
    st.binary(max_size=4),
    st.decimals(allow_nan=False),
    st.dates(),
    st.datetimes(timezones=st.none() | st.timezones() | st.just(UTC)),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.complex_numbers(),
    st.builds(Base, st.integers()),
    st.builds(Derived, st.integers(), st.integers()),
    st.builds(Counting, st.integers()),
    st.builds(Part, name=_texts),
    st.builds(SmallPart, size=st.integers()),
    st.builds(Circle, st.integers()),
    st.dictionaries(st.integers() | _texts | st.booleans(), st.integers(), max_size=3),
    st.sampled_from([*Access, *Mixed, Level.LOW, Colour.RED, SubStr("a"), SubInt(1), Path("a"), range(2), ...]),
)
_leaves: list[Any] = [
    *(Any, None, bool, int, float, str, bytes, Decimal, date, datetime, time, timedelta, UUID, Path),
    *(Access, Mixed, Level, Colour, Base, Derived, Counting, Part, SmallPart, Shape, Circle, Options),
    *(Literal["a", 1], dict[int, int], dict[str, int], dict[float, Any], Counter[str], Boxed[Any]),
]
_annotations: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(_leaves),
    lambda inner: st.one_of(
        inner.map(lambda kind: list[kind]),  # type: ignore[valid-type]
        inner.map(lambda kind: dict[str, kind]),  # type: ignore[valid-type]
        inner.map(lambda kind: tuple[kind, ...]),  # type: ignore[valid-type]
        inner.map(lambda kind: kind | None if kind is not None else int),
        st.lists(inner, min_size=2, max_size=3).map(_union),
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(_annotations, _anything | st.lists(_anything, max_size=2) | st.dictionaries(_texts, _anything, max_size=2))
def test_equal_or_refused(annotation: Any, value: Any) -> None:
    try:
        found = arrivals(annotation, value)
    except EncodeError:
        return
    for arrived in found:
        assert same(arrived, value, numbers=True), arrived


@dataclass
class Deep:
    values: dict[str, list[Base | Derived | UUID | str | date | datetime | int | float | bytes]]


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Deep,
        st.dictionaries(
            _texts,
            st.lists(
                st.one_of(
                    st.builds(Base, st.integers()),
                    st.builds(Derived, st.integers(), st.integers()),
                    st.uuids(),
                    st.uuids().map(str),
                    st.dates(),
                    st.dates().map(str),
                    st.datetimes(allow_imaginary=False, timezones=st.just(UTC)),
                    st.datetimes().map(datetime.isoformat),
                    st.integers(),
                    st.floats(allow_nan=False, allow_infinity=False),
                    st.binary(max_size=3),
                    _texts,
                ),
                max_size=3,
            ),
            max_size=3,
        ),
    )
)
def test_what_fits_its_annotation_is_not_refused(value: Deep) -> None:
    for arrived in arrivals(Deep, value):
        assert same(arrived, value)


def test_the_classes_of_this_test_count_what_runs() -> None:
    before = runs["Counting"]
    Counting(1)
    assert arriving.runs["Counting"] == before + 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`type` statements came with Python 3.12")
def test_aliases_and_parameters_of_python_3_12() -> None:
    scope: dict[str, Any] = {"Base": Base, "Derived": Derived}
    text = "type Both = Base | Derived\ntype Listed[T] = list[T]\ntype Json = dict[str, Json] | int\n"
    exec(
        f"{text}def task[U: int](a: Both, b: Listed[Listed[Both]], c: U) -> Both: ...\ndef endless(a: Json): ...", scope
    )
    signature = Signature(scope["task"], "mod:task")
    payload = signature.encode_arguments((Derived(1), [[Base(1)], [Derived(2)]], 3), {})
    assert signature.decode_arguments(payload)[1] == {"a": Derived(1), "b": [[Base(1)], [Derived(2)]], "c": 3}
    with pytest.raises(TypeError, match="parameter 'a' of the task mod:endless: the alias Json contains itself"):
        Signature(scope["endless"], "mod:endless").encode_arguments((1,), {})
