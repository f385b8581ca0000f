"""Which annotations have a JSON form, and which one."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import enum
import os
import types
import typing
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from types import NoneType
from typing import Any, Union
from uuid import UUID

import msgspec

from semtask.tasks.class_forms import Data, Field, Fields, Keys, Named, Struct
from semtask.tasks.containers import Constrained, Either, Items, Made, Members, Row
from semtask.tasks.forms import (
    Anything,
    Choice,
    FilePath,
    Float,
    Form,
    Leaf,
    OneOf,
    PlainJson,
    Text,
    UnsupportedType,
    read_custom,
)
from semtask.tasks.pydantic_forms import Model, Validated

_SHAPES = {bool: "boolean", int: "integer", str: "string", NoneType: "null"}
# In a union of what JSON has as strings the strictest one is tried first.
_TEXTS = {UUID: 1, date: 2, datetime: 3, time: 3, timedelta: 3, Decimal: 4, bytes: 5, bytearray: 5}
_LISTS = {
    list,
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Collection,
    collections.abc.Iterable,
    collections.abc.Reversible,
}
_SETS = {set, collections.abc.Set, collections.abc.MutableSet}
_DICTS = {dict, collections.abc.Mapping, collections.abc.MutableMapping}
_SECRETS = {"Secret", "SecretStr", "SecretBytes"}
_INSTEAD = {
    complex: "write tuple[float, float]",
    range: "write tuple[int, int, int], or the list",
    type: "pass its name as a str",
    memoryview: "write bytes",
    collections.defaultdict: "write dict",
    collections.ChainMap: "write dict",
    collections.abc.Callable: "pass the name of the function as a str",
    collections.abc.Iterator: "write list",
    collections.abc.Generator: "write list",
    collections.abc.AsyncIterator: "write list",
    collections.abc.AsyncGenerator: "write list",
}
_GENERAL = "use a dataclass, a TypedDict or plain data, or write Any for plain JSON"


# --- annotations of functions ----------------------------------------------------------------------------------------


def hints_of(function: Callable[..., Any], where: str) -> dict[str, Any]:
    """The annotations of a function. Raises UnsupportedType, which names those that cannot be resolved."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        bad = _unresolved(function)
        names = ", ".join(_shown(name, function.__annotations__[name]) for name in bad) or "one of them"
        raise UnsupportedType(
            f"an annotation of {where} cannot be resolved ({names}): {error}; import the name in the module of the "
            "task, not only under TYPE_CHECKING or inside of a function"
        ) from error


def _unresolved(function: Callable[..., Any]) -> list[str]:
    bad: list[str] = []
    for name, annotation in function.__annotations__.items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            typing.get_type_hints(alone, getattr(function, "__globals__", {}), include_extras=True)
        except Exception:  # noqa: BLE001 - an annotation can be any expression
            bad.append(name)
    return bad


def _shown(name: str, annotation: Any) -> str:
    what = "the result" if name == "return" else f"parameter '{name}'"
    return f"{what}: {annotation!r}"


def struct_of(fields: list[Any], where: str) -> type[msgspec.Struct]:
    """A Struct of these fields that refuses any other one. Raises UnsupportedType."""
    struct = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
    try:
        decoder(struct)
    except TypeError as error:
        raise UnsupportedType(f"{where}: {error}") from error
    return struct


def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=read_custom)


def form_of(annotation: Any, what: str) -> Form:
    """The form of one parameter, or of a result. Raises UnsupportedType, which names `what`."""
    try:
        form = _Forms().of(annotation)
        decoder(form.read_as)
    except UnsupportedType as error:
        raise UnsupportedType(f"{what}: {error}") from None
    except (TypeError, NameError, AttributeError, NotImplementedError, RecursionError) as error:
        raise UnsupportedType(f"{what}: {named(annotation)} has no JSON form ({error}); {_GENERAL}") from error
    return form


def named(annotation: Any) -> str:
    """An annotation as people write it."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        inside = annotation.__module__ in {"builtins", "__main__"}
        return annotation.__qualname__ if inside else f"{annotation.__module__}.{annotation.__qualname__}"
    return str(annotation).replace("typing.", "")


class _Forms:
    """The forms of one annotation and of all that is in it. A class that is in itself has one form."""

    def __init__(self) -> None:
        self._classes: dict[Any, Fields] = {}
        self._open: set[tuple[str, str]] = set()  # aliases, and what their parameters are

    def of(self, kind: Any, variables: Mapping[Any, Any] | None = None) -> Form:
        variables = variables or {}
        if kind is Any:
            return PlainJson()
        if kind is object or kind in (typing.NoReturn, typing.Never):
            return Anything()
        if kind is None:
            kind = NoneType
        if isinstance(kind, typing.TypeVar):
            return self._of_variable(kind, variables)
        if (value := getattr(kind, "__supertype__", None)) is not None:  # NewType
            return self.of(value, variables)
        if type(kind).__name__ == "TypeAliasType":
            return self._of_alias(kind, variables)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if type(origin).__name__ == "TypeAliasType":
            own = dict(zip(origin.__type_params__, arguments, strict=True))
            return self._of_alias(origin, {**variables, **own})
        if origin is typing.Annotated:
            return self._annotated(self.of(arguments[0], variables), arguments[1:])
        if origin in (typing.Required, typing.NotRequired, typing.Final) or getattr(origin, "_name", "") == "ReadOnly":
            return self.of(arguments[0], variables)
        if origin in (Union, types.UnionType):
            return self._union([self.of(argument, variables) for argument in arguments])
        if origin is typing.Literal:
            return self._literal(kind, arguments)
        return self._container(origin or kind, arguments, variables) or self._class(kind, origin or kind, variables)

    def _of_alias(self, alias: Any, variables: Mapping[Any, Any]) -> Form:
        """Of `type Alias = ...`, or of the alias of another library."""
        key = alias.__name__, repr(variables)
        if key in self._open:
            raise UnsupportedType(f"the alias {alias.__name__} contains itself; {_GENERAL}")
        self._open.add(key)
        try:
            return self.of(alias.__value__, variables)
        finally:
            self._open.discard(key)

    def _of_variable(self, variable: Any, variables: Mapping[Any, Any]) -> Form:
        if variable in variables:
            return self.of(variables[variable], {})
        if variable.__constraints__:
            return self._union([self.of(one, variables) for one in variable.__constraints__])
        return self.of(variable.__bound__ or Any, variables)

    @staticmethod
    def _annotated(form: Form, metadata: tuple[Any, ...]) -> Form:
        bounds = [one for one in metadata if isinstance(one, msgspec.Meta)]
        return Constrained(form, bounds) if bounds else form

    @staticmethod
    def _union(members: list[Form]) -> Form:
        flat: list[Form] = []
        for member in members:
            flat += member.parts if type(member) is Either else [member]
        if any(type(member) is PlainJson for member in flat) and all(type(m) in {PlainJson, Leaf, Float} for m in flat):
            return PlainJson()
        return Either(flat)

    @staticmethod
    def _literal(kind: Any, values: tuple[Any, ...]) -> Form:
        form = OneOf(kind, values)
        if form.is_ambiguous:
            raise UnsupportedType(f"the values of {named(kind)} are not all different in JSON")
        return form

    def _container(self, origin: Any, arguments: tuple[Any, ...], variables: Mapping[Any, Any]) -> Form | None:
        def inside(index: int) -> Form:
            return self.of(arguments[index], variables) if index < len(arguments) else PlainJson()

        if origin in _LISTS:
            return Items(list, inside(0))
        if origin in _SETS:
            return Items(set, inside(0))
        if origin is frozenset:
            return Items(frozenset, inside(0))
        if origin is tuple:
            if not arguments or arguments[-1] is Ellipsis:
                return Items(tuple, inside(0))
            return Row([self.of(argument, variables) for argument in arguments if argument != ()])
        if origin in _DICTS:
            return self._dict(inside(0), inside(1))
        if origin is collections.Counter:
            return Made(origin, self._dict(inside(0), Leaf(int, "integer")))
        if origin is collections.OrderedDict:
            return Made(origin, self._dict(inside(0), inside(1)))
        return Made(origin, Items(list, inside(0))) if origin is collections.deque else None

    @staticmethod
    def _dict(key: Form, value: Form) -> Form:
        clear = key.shapes in ({"string"}, {"integer"}, {"number"}) and not isinstance(key, Either)
        if not isinstance(key, PlainJson) and (not clear or (key.is_custom and key.shapes != {"string"})):
            raise UnsupportedType(
                f"a dict with keys of {key.name} has no JSON form, where keys are text; "
                "write dict[str, ...], or a list of pairs"
            )
        return Members(key, value)

    # --- classes ------------------------------------------------------------------------------------------------------

    def _class(self, kind: Any, origin: Any, variables: Mapping[Any, Any]) -> Form:
        if origin in _SHAPES:
            return Leaf(origin, _SHAPES[origin], 8 if origin is str else 0)
        if origin is float:
            return Float(float, "number", 1)
        if origin in _TEXTS:
            return Text(origin, "string", _TEXTS[origin])
        if origin is os.PathLike:
            return FilePath(Path, is_exact=False)
        if not isinstance(origin, type):
            raise UnsupportedType(f"{named(kind)} has no JSON form; {_instead(origin)}")
        if issubclass(origin, PurePath):
            return FilePath(origin)
        if issubclass(origin, enum.Enum):
            return Choice(origin)
        return self._with_fields(kind, origin, variables)

    def _with_fields(self, kind: Any, origin: type, variables: Mapping[Any, Any]) -> Form:
        parameters = getattr(origin, "__parameters__", ())
        own = {p: variables.get(a, a) for p, a in zip(parameters, typing.get_args(kind), strict=False)}
        key = (kind, tuple(own.items()))
        if (known := self._classes.get(key)) is not None:
            return known
        for is_one, form_class, fields_of in (
            (_is_model, Model, self._model_fields),
            (dataclasses.is_dataclass, Data, self._data_fields),
            (lambda one: hasattr(one, "__attrs_attrs__"), Data, self._attrs_fields),
            (lambda one: issubclass(one, msgspec.Struct), Struct, self._struct_fields),
            (lambda one: hasattr(one, "__total__") and hasattr(one, "__required_keys__"), Keys, self._keys),
            (lambda one: issubclass(one, tuple) and hasattr(one, "_fields"), Named, self._named_fields),
        ):
            if is_one(origin):
                form = self._classes[key] = form_class(origin, kind)
                form.fill(fields_of(origin, own))
                if isinstance(form, Data):
                    form.init_only = self._init_only(origin, own)
                return form
        if hasattr(origin, "__get_pydantic_core_schema__") and origin.__name__ not in _SECRETS:
            return Validated(kind)
        raise UnsupportedType(f"{named(kind)} has no JSON form; {_instead(origin)}")

    def _field(self, origin: type, name: str, annotation: Any, own: Mapping[Any, Any], **more: Any) -> Field:
        try:
            form = self.of(annotation, own)
        except UnsupportedType as error:
            raise UnsupportedType(f"the field {name!r} of {origin.__qualname__}: {error}") from None
        return Field(name, **{"key": name, "form": form, **more})

    def _model_fields(self, origin: Any, own: Mapping[Any, Any]) -> list[Field]:
        origin.model_rebuild()
        return [
            self._field(
                origin,
                name,
                info.annotation,
                own,
                key=info.validation_alias if isinstance(info.validation_alias, str) else name,
                default=None if info.is_required() else lambda info=info: info.get_default(call_default_factory=True),
            )
            for name, info in origin.model_fields.items()
        ]

    def _data_fields(self, origin: Any, own: Mapping[Any, Any]) -> list[Field]:
        hints = _class_hints(origin)
        return [
            self._field(
                origin,
                field.name,
                hints[field.name],
                own,
                default=_default(field.default, field.default_factory, dataclasses.MISSING),
                is_argument=field.init,
            )
            for field in dataclasses.fields(origin)
        ]

    def _init_only(self, origin: Any, own: Mapping[Any, Any]) -> list[Field]:
        hints = _class_hints(origin)
        return [
            self._field(origin, name, hint.type, own)
            for name, hint in hints.items()
            if isinstance(hint, dataclasses.InitVar)
        ]

    def _attrs_fields(self, origin: Any, own: Mapping[Any, Any]) -> list[Field]:
        hints = _class_hints(origin)
        return [
            self._field(
                origin,
                attribute.name,
                hints.get(attribute.name, Any),
                own,
                default=_attrs_default(attribute.default),
                is_argument=attribute.init,
            )
            for attribute in origin.__attrs_attrs__
        ]

    def _struct_fields(self, origin: Any, own: Mapping[Any, Any]) -> list[Field]:
        hints = _class_hints(origin)
        return [
            self._field(
                origin,
                field.name,
                hints[field.name],
                own,
                key=field.encode_name,
                default=_default(field.default, field.default_factory, msgspec.NODEFAULT),
            )
            for field in msgspec.structs.fields(origin)
        ]

    def _keys(self, origin: Any, own: Mapping[Any, Any]) -> list[Field]:
        hints = _class_hints(origin)
        required = set(origin.__required_keys__)
        for name, hint in hints.items():  # a string hides these from the class itself
            if typing.get_origin(hint) is typing.Required:
                required.add(name)
            elif typing.get_origin(hint) is typing.NotRequired:
                required.discard(name)
        return [
            self._field(origin, name, hint, own, default=None if name in required else NoneType)
            for name, hint in hints.items()
        ]

    def _named_fields(self, origin: Any, own: Mapping[Any, Any]) -> list[Field]:
        hints, defaults = _class_hints(origin), origin._field_defaults
        return [
            self._field(
                origin,
                name,
                hints.get(name, Any),
                own,
                default=_default(defaults[name], None, None) if name in defaults else None,
            )
            for name in origin._fields
        ]


def _class_hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception as error:
        raise UnsupportedType(
            f"an annotation of the class {kind.__qualname__} cannot be resolved: {error}; import the name in the "
            "module of the class, not only under TYPE_CHECKING or inside of a function"
        ) from error


def _default(value: Any, factory: Any, missing: Any) -> Callable[[], Any] | None:
    if factory is not missing and factory is not None:
        return factory  # type: ignore[no-any-return]
    return None if value is missing and missing is not None else lambda: value


def _attrs_default(default: Any) -> Callable[[], Any] | None:
    if type(default).__name__ == "_Nothing":
        return None
    factory = getattr(default, "factory", None)
    return (lambda: default) if factory is None else factory


def _instead(kind: Any) -> str:
    if getattr(kind, "__name__", "") in _SECRETS:
        return (
            "payloads are stored, and a secret is not: pass the name under which the task finds it, or a str of "
            "get_secret_value() if it may be stored"
        )
    if isinstance(kind, typing.ParamSpec) or type(kind).__name__ in {"ParamSpecArgs", "ParamSpecKwargs"}:
        return "write out the parameters of the task"
    if kind is typing.Self:
        return "write the name of the class"
    return _INSTEAD.get(kind, _GENERAL)


def _is_model(kind: Any) -> bool:
    """Whether it is one of pydantic's models. Told by its form: pydantic need not be there."""
    return isinstance(kind, type) and hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate_json")
