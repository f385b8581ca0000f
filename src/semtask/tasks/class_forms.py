"""The forms of classes with fields: dataclasses, structs, attrs, TypedDict, NamedTuple, and pydantic's models.

A value is written as what its fields are. A class whose construction runs code of its own (__post_init__, validators,
converters) would run it again when the value is read, and might change it. So what is written of such a value has
`$state` beside its fields; with it the value is put together as it was, as a copy is. JSON without `$state`, written by
hand, is constructed as usual.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from semtask.tasks.forms import STATE, Form, PlainJson, Unfit, reachable, stand_in, type_name

_PLAIN = PlainJson()


@dataclass(frozen=True)
class Field:
    """One of a class: its name there, its key in JSON. `default` makes its value where that is not given."""

    name: str
    key: str
    form: Form
    default: Callable[[], Any] | None = None
    is_argument: bool = True


class Fields(Form):
    """Of a class with fields. They are there after `fill`: the class may be in a field of itself."""

    shapes = frozenset({"object"})
    fields: Sequence[Field] = ()

    def __init__(self, kind: Any, annotation: Any) -> None:
        self.kind = kind
        self.name = kind.__name__
        self._annotation = annotation
        self._stand_in = stand_in(self)

    def fill(self, fields: Sequence[Field]) -> None:
        self.fields = fields
        self.parts = tuple(field.form for field in fields)

    @cached_property
    def has_code(self) -> bool:
        """Whether its construction runs code of the class."""
        return False

    @cached_property
    def is_custom(self) -> bool:  # type: ignore[override]
        """Also where a field, however deep, is of a type that msgspec would not find a stand-in for."""
        return self.has_code or any(
            part.has_code if isinstance(part, Fields) else part.is_custom for part in reachable(self)
        )

    @property
    def read_as(self) -> Any:
        return self._stand_in if self.is_custom else self._annotation

    def owns(self, value: Any) -> bool:
        return type(value) is self.kind

    def write(self, value: Any) -> Any:
        if type(value) is not self.kind:
            raise self._wrong(value)
        return self._write_fields(value) | self._tag

    @property
    def _tag(self) -> dict[str, Any]:
        """What tells its JSON from that of other classes."""
        return {}

    @cached_property
    def _writers(self) -> list[tuple[str, str, Callable[[Any], Any]]]:
        return [(field.name, field.key, field.form.write) for field in self.fields]

    def _write_fields(self, value: Any) -> dict[str, Any]:
        written: dict[str, Any] = {}
        name = ""
        get = self._get
        try:
            for name, key, write in self._writers:
                written[key] = write(get(value, name))
        except Unfit as error:
            raise error.inside(f".{name}") from None
        except (AttributeError, KeyError):
            raise Unfit("it has no value", f".{name}") from None
        return written

    _get: Callable[[Any, str], Any] = staticmethod(getattr)

    def _wrong(self, value: Any) -> Unfit:
        if isinstance(value, self.kind):
            return Unfit(
                f"a {type_name(value)} would arrive as a {self.name}, without what only a {type_name(value)} has; "
                f"annotate it as {type_name(value)}, or as {self.name} | {type_name(value)}"
            )
        return Unfit(f"expected {self.name}, got {type_name(value)}")

    def build(self, plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise msgspec.ValidationError(f"Expected `object`, got `{type(plain).__name__}`")
        if not self.has_code or STATE in plain:
            return self._restore(plain)
        return self._construct(plain)

    def _restore(self, plain: dict[str, Any]) -> Any:
        """A value of these fields, without code of its class."""
        values = self._read_fields(self.fields, plain)
        for field in self.fields:
            if field.name not in values:
                if field.default is None:
                    raise msgspec.ValidationError(f"Object missing required field `{field.key}`")
                values[field.name] = field.default()
        return self._made_of(values, plain.get(STATE) or {})

    @staticmethod
    def _read_fields(fields: Sequence[Field], plain: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for field in fields:
            if field.key in plain:
                try:
                    values[field.name] = field.form.read(plain[field.key])
                except msgspec.ValidationError as error:
                    raise msgspec.ValidationError(f"{error} - in the field `{field.key}`") from error
        return values

    def _construct(self, plain: dict[str, Any]) -> Any:
        return self.kind(**self._read_fields(self.fields, plain))

    def _made_of(self, values: dict[str, Any], state: dict[str, Any]) -> Any:  # noqa: ARG002 - where there is any
        made = self.kind.__new__(self.kind)
        for name, value in values.items():
            object.__setattr__(made, name, value)
        return made

    def fits(self, plain: Any) -> bool:
        if not isinstance(plain, dict):
            return False
        known = {field.key: field for field in self.fields}
        needed = {field.key for field in self.fields if field.default is None and field.is_argument}
        tag = self._tag
        rest = plain.keys() - tag.keys() - {STATE}
        return (
            needed <= plain.keys()
            and rest <= known.keys()
            and all(plain.get(key) == value for key, value in tag.items())
            and all(known[key].form.fits(plain[key]) for key in rest)
        )

    def schema(self, describe: Callable[[Form], dict[str, Any]]) -> dict[str, Any]:
        properties = {field.key: describe(field.form) for field in self.fields}
        properties |= {key: {"const": value} for key, value in self._tag.items()}
        if self.has_code:
            properties[STATE] = {"type": "object"}
        required = [field.key for field in self.fields if field.default is None and field.is_argument]
        return {"title": self.name, "type": "object", "properties": properties, "required": required}


class Data(Fields):
    """A dataclass, also one of pydantic's, or a class of attrs. `init_only` are its InitVar."""

    init_only: Sequence[Field] = ()

    @cached_property
    def has_code(self) -> bool:
        kind = self.kind
        if hasattr(kind, "__attrs_attrs__"):
            hooks = ("__attrs_pre_init__", "__attrs_post_init__", "__attrs_init__")
            fields = kind.__attrs_attrs__
            return any(hasattr(kind, name) for name in hooks) or any(a.converter or a.validator for a in fields)
        return (
            hasattr(kind, "__post_init__")
            or not kind.__dataclass_params__.init
            or any(map(_is_init_var, kind.__dataclass_fields__.values()))
            or hasattr(kind, "__pydantic_validator__")
        )

    def write(self, value: Any) -> Any:
        written = super().write(value)
        others = self._others(value)
        if not self.has_code:
            if others:
                name = next(iter(others))
                raise Unfit(f"the attribute {name!r} of a {self.name} is no field of it, and would be lost")
            return written
        return written | {STATE: self._state(others)}

    @cached_property
    def _names(self) -> set[str]:
        return {field.name for field in self.fields}

    def _others(self, value: Any) -> dict[str, Any]:
        """Attributes that are no fields. What a cached_property has kept is computed again when it is needed."""
        found = getattr(value, "__dict__", {})
        if found.keys() <= self._names:
            return {}
        return {
            name: other
            for name, other in found.items()
            if name not in self._names and not isinstance(getattr(self.kind, name, None), cached_property)
        }

    def _state(self, others: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"attributes": _PLAIN.write(others)} if others else {}
        except Unfit as error:
            if self._can_rerun():
                return {"run": True}
            raise Unfit(f"an attribute of a {self.name} that is no field: {error.reason}", error.place) from None

    def _can_rerun(self) -> bool:
        """Whether __post_init__ can be called on a value that has its fields."""
        fields = getattr(self.kind, "__dataclass_fields__", {}).values()
        return hasattr(self.kind, "__post_init__") and not any(map(_is_init_var, fields))

    def _made_of(self, values: dict[str, Any], state: dict[str, Any]) -> Any:
        made = super()._made_of(values, state)
        if state.get("run") and self._can_rerun():
            made.__post_init__()  # for what else it has; its fields stay as they were sent
        for name, value in (state.get("attributes", {}) | values).items():
            object.__setattr__(made, name, value)
        return made

    def _construct(self, plain: dict[str, Any]) -> Any:
        arguments = [field for field in self.fields if field.is_argument]
        values = self._read_fields([*arguments, *self.init_only], plain)
        if hasattr(self.kind, "__attrs_attrs__"):
            aliases = {attribute.name: attribute.alias for attribute in self.kind.__attrs_attrs__}
            values = {aliases[name]: value for name, value in values.items()}
        return self.kind(**values)


def _is_init_var(field: Any) -> bool:
    return bool(field._field_type is dataclasses._FIELD_INITVAR)  # type: ignore[attr-defined]


class Struct(Fields):
    """One of msgspec's. Its __post_init__ cannot be left out: it runs, and then the fields are put back."""

    def __init__(self, kind: Any, annotation: Any) -> None:
        super().__init__(kind, annotation)
        self._config = kind.__struct_config__
        if self._config.array_like:
            self.shapes = frozenset({"array"})

    @cached_property
    def has_code(self) -> bool:
        return hasattr(self.kind, "__post_init__")

    @property
    def _tag(self) -> dict[str, Any]:
        return {} if self._config.tag is None else {self._config.tag_field: self._config.tag}

    def write(self, value: Any) -> Any:
        written = super().write(value)
        if self._config.array_like:
            if self.is_custom:
                raise Unfit(f"{self.name} is array_like, and has a field or a __post_init__ that needs names")
            tag = [] if self._config.tag is None else [self._config.tag]
            return tag + [written[field.key] for field in self.fields]
        return written | {STATE: {}} if self.has_code else written

    def _made_of(self, values: dict[str, Any], state: dict[str, Any]) -> Any:  # noqa: ARG002
        made = self.kind(**values)
        for name, value in values.items():
            msgspec.structs.force_setattr(made, name, value)
        return made

    def fits(self, plain: Any) -> bool:
        return isinstance(plain, list) if self._config.array_like else super().fits(plain)


class Keys(Fields):
    """A TypedDict."""

    def owns(self, value: Any) -> bool:
        return type(value) is dict

    def write(self, value: Any) -> Any:
        if type(value) is not dict:
            raise self._wrong(value)
        for name in self._required:
            if name not in value:
                raise Unfit(f"the key {name!r} of {self.name} is missing")
        written: dict[str, Any] = {}
        for key, one in value.items():
            if key not in self._by_name:
                raise Unfit(f"{self.name} has no key {key!r:.80}, which would be lost")
            try:
                written[key] = self._by_name[key].form.write(one)
            except Unfit as error:
                raise error.inside(f"[{key!r}]") from None
        return written

    @cached_property
    def _by_name(self) -> dict[str, Field]:
        return {field.name: field for field in self.fields}

    @cached_property
    def _required(self) -> list[str]:
        return [field.name for field in self.fields if field.default is None]

    def _wrong(self, value: Any) -> Unfit:
        return Unfit(f"expected a dict as {self.name}, got {type_name(value)}")

    def _restore(self, plain: dict[str, Any]) -> Any:
        for name in self._required:
            if name not in plain:
                raise msgspec.ValidationError(f"Object missing required field `{name}`")
        return self._read_fields([self._by_name[key] for key in plain if key in self._by_name], plain)


class Named(Fields):
    """A NamedTuple: a list in JSON."""

    shapes = frozenset({"array"})

    def write(self, value: Any) -> list[Any]:
        if type(value) is not self.kind:
            raise self._wrong(value)
        return list(self._write_fields(value).values())

    def build(self, plain: Any) -> Any:
        if not self.fits(plain):
            raise msgspec.ValidationError(f"Expected `array` of the {len(self.fields)} fields of {self.name}")
        given = [field.form.read(item) for field, item in zip(self.fields, plain, strict=False)]
        rest = [field.default() for field in self.fields[len(given) :] if field.default is not None]
        return tuple.__new__(self.kind, [*given, *rest])

    def fits(self, plain: Any) -> bool:
        needed = sum(field.default is None for field in self.fields)
        return (
            isinstance(plain, list)
            and needed <= len(plain) <= len(self.fields)
            and all(field.form.fits(item) for field, item in zip(self.fields, plain, strict=False))
        )

    def schema(self, describe: Callable[[Form], dict[str, Any]]) -> dict[str, Any]:
        return {"title": self.name, "type": "array", "prefixItems": [describe(field.form) for field in self.fields]}
