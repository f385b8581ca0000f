"""Classes of all kinds whose values go through a payload, and what makes two values the same."""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, is_dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic

T = TypeVar("T")
runs: Counter[str] = Counter()  # of code that belongs to the construction of a class


@dataclass
class Base:
    x: int


@dataclass
class Derived(Base):
    y: int = 0


@dataclass
class Counting:
    """Not the same after a second construction."""

    x: int
    total: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        runs["Counting"] += 1
        self.x += 1
        self.total += self.x
        self.note = "kept"


@dataclass
class WithLock:
    path: Path

    def __post_init__(self) -> None:
        runs["WithLock"] += 1
        self.path /= "x"
        self.lock = object()


@dataclass
class Initialised:
    x: InitVar[int]
    y: int = 0

    def __post_init__(self, x: int) -> None:
        self.y += x


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    a: date | datetime
    b: tuple[int, ...] = ()


@dataclass
class Cached:
    x: int

    @cached_property
    def double(self) -> int:
        return self.x * 2


@dataclass
class Boxed(Generic[T]):
    content: T


@dataclass
class Tree:
    value: UUID | str
    children: list[Tree] = field(default_factory=list)


class Shape(msgspec.Struct, tag=True, rename="camel", omit_defaults=True):
    side_length: int
    inner_parts: list[int] = []


class Circle(Shape, tag=True):
    radius: int = 1


class Point(msgspec.Struct, array_like=True, frozen=True):
    x: int
    y: int = 0


class Stepping(msgspec.Struct, frozen=True):
    x: int

    def __post_init__(self) -> None:
        runs["Stepping"] += 1
        msgspec.structs.force_setattr(self, "x", self.x + 1)


def _doubled(value: int) -> int:
    runs["Converted"] += 1
    return value * 2


@attrs.define
class Converted:
    x: int = attrs.field(converter=_doubled)
    _hidden: int = 3


@attrs.frozen
class Checked:
    x: int = attrs.field(validator=attrs.validators.gt(0))
    at: date | datetime = date(2026, 1, 1)


class Row(NamedTuple):
    a: int
    b: date | datetime | None = None


class Options(TypedDict):
    depth: int
    follow: NotRequired[bool]


class Loose(TypedDict, total=False):
    when: date | datetime


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Mixed(enum.Enum):
    ONE = 1
    TEXT = "1"
    PAIR = (1, 2)


class Part(pydantic.BaseModel):
    name: str = "n"
    size: int | None = None


class Priced(pydantic.BaseModel):
    """Not the same after a second validation."""

    cents: int
    words: list[str] = []

    @pydantic.field_validator("cents", mode="before")
    @classmethod
    def _to_cents(cls, value: Any) -> Any:
        runs["Priced"] += 1
        return value * 100

    @pydantic.field_validator("words", mode="before")
    @classmethod
    def _split(cls, value: str) -> list[str]:
        runs["Priced.words"] += 1
        return value.split(",")


class Whole(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    shown: int
    hidden: int = pydantic.Field(default=0, exclude=True)
    named: int = pydantic.Field(default=0, alias="theName")
    read: int = pydantic.Field(default=0, validation_alias="in", serialization_alias="out")
    stamp: UUID = pydantic.Field(default_factory=lambda: UUID(int=runs["stamp"]))
    part: Part | Priced | None = None
    parts: dict[str, Part] = {}
    _private: int = 0

    @pydantic.computed_field
    def twice(self) -> int:
        return self.shown * 2

    def model_post_init(self, context: Any, /) -> None:
        runs["Whole"] += 1
        self._private = runs["Whole"]


class SmallPart(Part):
    extra: int = 0


class Items(pydantic.RootModel[list[Part]]): ...


class Slot(pydantic.BaseModel, Generic[T]):
    content: T


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


class Owner(pydantic.BaseModel):
    pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
    home: pydantic.HttpUrl | None = None


class Forbidding(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    x: int = pydantic.Field(alias="theX")


@pydantic.dataclasses.dataclass
class Validated:
    x: int

    @pydantic.field_validator("x", mode="before")
    @classmethod
    def _more(cls, value: int) -> int:
        return value + 1


class SubStr(str): ...


class SubInt(int): ...


UserId = NewType("UserId", int)


def same(a: Any, b: Any, *, numbers: bool = False) -> bool:
    """Equal, of one type, and so is all that is inside; with `numbers` a float may be for an equal int."""

    def alike(a: Any, b: Any) -> bool:
        return same(a, b, numbers=numbers)

    if type(a) is not type(b):
        return numbers and {type(a), type(b)} == {int, float} and bool(a == b)
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, datetime):
        return a == b and a.utcoffset() == b.utcoffset() and (a.fold == b.fold or bool(a.tzinfo))
    if isinstance(a, Mapping):
        ordered = list(a) == list(b) and all(map(_same_type, a, b))
        return ordered and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, Sequence | deque) and not isinstance(a, str | bytes | bytearray):
        return len(a) == len(b) and all(map(alike, a, b)) and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0)
    if isinstance(a, set | frozenset):
        return a == b and (numbers or Counter(map(type, a)) == Counter(map(type, b)))
    if isinstance(a, pydantic.BaseModel):
        private = a.__pydantic_private__ == b.__pydantic_private__
        return a == b and private and a.model_fields_set == b.model_fields_set and alike(vars(a), vars(b))
    if is_dataclass(a) or hasattr(a, "__struct_fields__") or hasattr(a, "__attrs_attrs__"):
        names = [f.name for f in a.__attrs_attrs__] if hasattr(a, "__attrs_attrs__") else _field_names(a)
        return a == b and all(alike(getattr(a, name), getattr(b, name)) for name in names)
    return bool(a == b)


def _same_type(a: Any, b: Any) -> bool:
    return type(a) is type(b)


def _field_names(value: Any) -> list[str]:
    if hasattr(value, "__struct_fields__"):
        return list(value.__struct_fields__)
    return [name for name, f in value.__dataclass_fields__.items() if f._field_type.name == "_FIELD"]
