"""How values of a type are written as JSON and read again: as equal values of the same type, or with an error.

A form is made for an annotation. Its `write` looks at the exact types of a value and of all that is in it, so that
nothing is changed silently on its way; it runs no constructor, validator or converter. What it writes is plain JSON.
msgspec reads what it can read by itself (`read_as`); where it cannot, the form has a stand-in there, and `build`s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from pathlib import PurePath
from types import NoneType
from typing import Any

import msgspec

_SCALARS = frozenset({str, int, bool, NoneType})
_NUMBERS_TOO = _SCALARS | {float}
_CONTAINERS = (list, tuple, set, frozenset)
TYPE, VALUE, STATE = "$type", "$value", "$state"

encode = msgspec.json.Encoder().encode


class UnsupportedType(TypeError):
    """An annotation that cannot be resolved, or that has no JSON form."""


class Unfit(Exception):
    """A value that would not arrive as it is: why, and where it is in the argument."""

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.place = place

    def inside(self, step: str) -> Unfit:
        """As seen from one container further out."""
        return Unfit(self.reason, step + self.place)


class _StandInType(type):
    form: Form

    def __instancecheck__(cls, instance: object) -> bool:
        return True  # msgspec looks at what a stand-in has built


def stand_in(form: Form) -> type:
    """A type for msgspec to meet in the place of one that it cannot read as the form does."""
    return _StandInType(form.name, (), {"form": form})


def read_custom(kind: Any, plain: Any) -> Any:
    """What msgspec asks where it meets a type that is not its own."""
    if isinstance(kind, _StandInType):
        return kind.form.build(plain)
    if not isinstance(plain, str):
        raise msgspec.ValidationError(f"Expected `str`, got `{type(plain).__name__}`")
    return kind(plain)  # a path


class Form:
    """Of one annotation.

    `read_as` is the type that msgspec reads it as. `shapes` are the kinds of JSON that it is written as; `rank` orders
    the members of a union that JSON does not tell apart; `parts` are the forms of what is inside.
    """

    name: str
    read_as: Any
    shapes: frozenset[str] = frozenset()
    rank: int = 0
    parts: Sequence[Form] = ()
    is_custom = False  # whether msgspec cannot read it by itself

    def write(self, value: Any) -> Any:
        """The value as plain JSON. Raises Unfit."""
        raise NotImplementedError

    def owns(self, value: Any) -> bool:
        """Whether a value is of this type, as far as its own type says."""
        raise NotImplementedError

    def build(self, plain: Any) -> Any:
        """The value, where `is_custom`. Raises an exception for what does not fit."""
        raise NotImplementedError

    def read(self, plain: Any) -> Any:
        """The value that plain JSON stands for. Raises msgspec.ValidationError."""
        return msgspec.convert(plain, self.read_as, dec_hook=read_custom, str_keys=True)

    def fits(self, plain: Any) -> bool:
        """Whether plain JSON looks like a value of this form. Runs no code of a user's class."""
        try:
            self.read(plain)
        except (msgspec.ValidationError, ValueError, TypeError, KeyError):
            return False
        return True

    def schema(self, describe: Callable[[Form], dict[str, Any]]) -> dict[str, Any]:  # noqa: ARG002 - a part of it
        """The JSON schema, where `is_custom`."""
        return {"description": self.name}

    def _refuse(self, value: Any) -> Unfit:
        return Unfit(f"expected {self.name}, got {type_name(value)}{advice(value, self.read_as)}")


def reachable(form: Form) -> Iterator[Form]:
    """The form and all that is in it."""
    seen, waiting = {id(form)}, [form]
    while waiting:
        at = waiting.pop()
        yield at
        for part in at.parts:
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)


# --- leaves ----------------------------------------------------------------------------------------------------------


class Leaf(Form):
    """A type whose values are written as they are, or as msgspec writes them."""

    def __init__(self, kind: Any, shape: str, rank: int = 0) -> None:
        self.read_as = kind
        self.name = "None" if kind is NoneType else kind.__name__
        self.shapes = frozenset({shape})
        self.rank = rank

    def owns(self, value: Any) -> bool:
        return type(value) is self.read_as

    def write(self, value: Any) -> Any:
        if type(value) is not self.read_as:
            raise self._refuse(value)
        return value


class Text(Leaf):
    """What JSON has as a string, but is none in Python."""

    def write(self, value: Any) -> Any:
        if type(value) is not self.read_as:
            raise self._refuse(value)
        if isinstance(value, datetime | time):
            _require_plain_clock(value)
        plain = msgspec.to_builtins(value)
        if isinstance(value, Decimal) and str(msgspec.convert(plain, Decimal)) != str(value):
            raise Unfit(f"the Decimal {value} would not arrive as it is")
        return plain


def _require_plain_clock(value: datetime | time) -> None:
    name, zone = type(value).__name__, value.tzinfo
    if zone is None:
        if value.fold:
            raise Unfit(f"the fold of a {name} without a time zone would be lost; give it a zone, such as UTC")
        return
    offset = value.utcoffset()
    if type(zone) is not timezone and (offset is None or str(zone) != "UTC"):
        raise Unfit(
            f"a {name} in the zone {zone} would arrive with a fixed offset; use value.astimezone(UTC), and pass the "
            "name of the zone as a str where the task needs it"
        )
    if offset is not None and offset % timedelta(minutes=1):
        raise Unfit(f"a {name} whose offset from UTC is no whole minutes would be changed; use value.astimezone(UTC)")


class Float(Leaf):
    """An int is one if there is an equal float, as type checkers have it."""

    def owns(self, value: Any) -> bool:
        return type(value) in {float, int}

    def write(self, value: Any) -> float:
        if type(value) is not float:
            value = self._of_int(value)
        if not math.isfinite(value):
            raise Unfit("JSON has no NaN or infinity")
        return value  # type: ignore[no-any-return]

    def _of_int(self, value: Any) -> float:
        if type(value) is not int:
            raise self._refuse(value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if number != value:
            raise Unfit("no float equals this int, which is too large; annotate it as int")
        return number


class PlainJson(Form):
    """No annotation, or Any: what JSON has."""

    name, rank = "plain JSON", 10
    read_as: Any = Any
    shapes = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})

    def owns(self, value: Any) -> bool:
        return type(value) in _NUMBERS_TOO or type(value) in {list, dict}

    def write(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind is float:
            if not math.isfinite(value):
                raise Unfit("JSON has no NaN or infinity")
        elif kind is list:
            if not _are_plain(value):
                write_items(self, value)
        elif kind is dict:
            self._look_into(value)
        else:
            raise Unfit(
                f"a {type_name(value)} has no JSON form by itself, and would not arrive as one; "
                f"annotate it with its type{advice(value, list).replace(';', ', or')}"
            )
        return value

    def _look_into(self, value: dict[Any, Any]) -> None:
        if not set(map(type, value)) <= {str}:
            key = next(key for key in value if type(key) is not str)
            raise Unfit(f"the key {key!r:.80} is a {type_name(key)}, and JSON has text only; annotate dict[...]")
        if not _are_plain(value.values()):
            write_members(self, value)


class Anything(PlainJson):
    """`object`, which msgspec would not take for plain JSON."""

    is_custom = True

    def __init__(self) -> None:
        self.read_as = stand_in(self)

    def build(self, plain: Any) -> Any:
        return plain


def _are_plain(values: Iterable[Any]) -> bool:
    """Whether nothing in it needs a closer look. At the speed of C: lists can be long."""
    kinds = set(map(type, values))
    return kinds <= _SCALARS or (
        kinds <= _NUMBERS_TOO and all(math.isfinite(value) for value in values if type(value) is float)
    )


class FilePath(Form):
    shapes, rank = frozenset({"string"}), 9  # in a union with str, text is a str

    def __init__(self, kind: type[PurePath], *, is_exact: bool = True) -> None:
        self._kind = kind
        self.name = kind.__name__
        self._made = type(kind())  # Path makes a PosixPath
        self.is_custom = not is_exact  # os.PathLike
        self.read_as = kind if is_exact else stand_in(self)

    def owns(self, value: Any) -> bool:
        return type(value) is self._made

    def write(self, value: Any) -> str:
        if type(value) is not self._made:
            raise self._refuse(value)
        return str(value)

    def build(self, plain: Any) -> Any:
        return read_custom(self._kind, plain)

    def schema(self, describe: Callable[[Form], dict[str, Any]]) -> dict[str, Any]:  # noqa: ARG002
        return {"type": "string", "format": "path"}


class Choice(Form):
    """An Enum: by its values where they are all text or all numbers, else by name. A Flag is its number."""

    def __init__(self, kind: type[Enum]) -> None:
        self._kind = kind
        self.read_as: Any = kind
        self.name = kind.__name__
        self._is_flag = issubclass(kind, Flag)
        kinds = {type(member.value) for member in kind}
        self._by_value = not self._is_flag and kinds in ({str}, {int})
        self.shapes = frozenset({"integer" if self._is_flag or kinds == {int} else "string"})
        if not self._by_value:
            self.is_custom = True
            self.read_as = stand_in(self)

    def owns(self, value: Any) -> bool:
        return type(value) is self._kind

    def write(self, value: Any) -> Any:
        if type(value) is not self._kind:
            raise Unfit(f"expected a {self.name}, got {type_name(value)}")
        return value.value if self._by_value or self._is_flag else value.name

    def build(self, plain: Any) -> Any:
        if self._is_flag:
            if type(plain) is not int:
                raise msgspec.ValidationError("Expected `int`")
            return self._kind(plain)
        try:
            return self._kind[plain]
        except KeyError:
            raise msgspec.ValidationError(f"{self.name} has no {plain!r:.80}") from None

    def schema(self, describe: Callable[[Form], dict[str, Any]]) -> dict[str, Any]:  # noqa: ARG002
        return {"type": "integer"} if self._is_flag else {"enum": [member.name for member in self._kind]}


class OneOf(Form):
    """A Literal."""

    def __init__(self, kind: Any, values: Sequence[Any]) -> None:
        self.read_as = kind
        self.name = f"one of {', '.join(map(repr, values))}"
        self._values = {(type(value), value): _literal_plain(value) for value in values}
        self._plains = {(type(plain), plain): key[1] for key, plain in self._values.items()}
        self.is_ambiguous = len(self._plains) < len(self._values)
        self.shapes = frozenset({_shape_of(plain) for plain in self._values.values()})
        if not all(type(value) in {str, int, NoneType} for value in values):
            self.is_custom = True
            self.read_as = stand_in(self)

    def owns(self, value: Any) -> bool:
        try:
            return (type(value), value) in self._values
        except TypeError:
            return False

    def write(self, value: Any) -> Any:
        if not self.owns(value):
            raise Unfit(f"expected {self.name}, got {value!r:.80}")
        return self._values[type(value), value]

    def build(self, plain: Any) -> Any:
        try:
            return self._plains[type(plain), plain]
        except (KeyError, TypeError):
            raise msgspec.ValidationError(f"Expected {self.name}") from None

    def schema(self, describe: Callable[[Form], dict[str, Any]]) -> dict[str, Any]:  # noqa: ARG002
        return {"enum": list(self._values.values())}


def _literal_plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else msgspec.to_builtins(value)


def _shape_of(plain: Any) -> str:
    return {str: "string", bool: "boolean", int: "integer", NoneType: "null"}[type(plain)]


def write_items(form: Form, values: Iterable[Any]) -> list[Any]:
    write = form.write
    written: list[Any] = []
    try:
        for value in values:
            written.append(write(value))  # noqa: PERF401 - its length says which one does not fit
    except Unfit as error:
        raise error.inside(f"[{len(written)}]") from None
    return written


def write_members(form: Form, members: Mapping[Any, Any]) -> dict[Any, Any]:
    write = form.write
    written: dict[Any, Any] = {}
    try:
        for key, value in members.items():
            written[key] = write(value)
    except Unfit as error:
        raise error.inside(f"[{key!r:.80}]") from None
    return written


# --- for people ------------------------------------------------------------------------------------------------------


def type_name(value: Any) -> str:
    return "null" if value is None else type(value).__qualname__


def advice(value: Any, wanted: Any = None) -> str:
    """How to pass a value of a class that is near to what is expected."""
    if wanted in _CONTAINERS and isinstance(value, _CONTAINERS) and type(value) is not wanted:
        return f"; pass {wanted.__name__}(value)"
    for near in (str, int, float, bytes, list, dict, tuple, set, frozenset):
        if isinstance(value, near) and type(value) is not near and type(value) is not bool:
            return f"; pass {near.__name__}(value)"
    return ""
