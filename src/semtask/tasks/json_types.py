"""Which Python types have a JSON form, and how values take it: msgspec's types, paths, and pydantic's models.

A value goes three steps: to plain containers and leaves, to the annotated types (which refuses what is none of them,
deeply: bytes are no str), to JSON text.
"""

from __future__ import annotations

import json
import math
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any, Union
from uuid import UUID

import msgspec
import msgspec.inspect

# Leaves that JSON writes as strings. They stay what they are until then: else a str would do for each of them.
_LEAVES = (bytes, bytearray, datetime, date, time, timedelta, UUID, Decimal)
_DEFINITIONS = "#/$defs/{name}"


class UnsupportedType(TypeError):
    """An annotation that cannot be resolved, or that has no JSON form."""


# --- values ----------------------------------------------------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """Containers, and leaves that JSON has or that msgspec can write."""
    return msgspec.to_builtins(value, builtin_types=_LEAVES, enc_hook=_plain)


def convert(plain: Any, kind: Any) -> Any:
    """A plain value as the annotated type. Raises msgspec.ValidationError with the place of what does not fit."""
    return msgspec.convert(plain, kind, builtin_types=_LEAVES, dec_hook=_typed)


def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_typed)


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if _is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    raise NotImplementedError(f"Encoding objects of type {type(value).__qualname__} is unsupported")


def _typed(kind: Any, plain: Any) -> Any:
    if _is_path(kind):
        if not isinstance(plain, str):
            raise msgspec.ValidationError(f"Expected `str`, got `{type(plain).__name__}`")
        return kind(plain)
    # As JSON, not as Python: a strict model takes a date from JSON as a string.
    return kind.model_validate_json(encode(plain))


encode = msgspec.json.Encoder(enc_hook=_plain).encode
encode_sorted = msgspec.json.Encoder(enc_hook=_plain, order="deterministic").encode  # sets, and dicts with them


def place_of_non_finite(value: Any) -> str | None:
    """Where a NaN or an infinity is in a value; msgspec would write it as null."""
    plain = to_plain(value)
    try:
        json.dumps(plain, allow_nan=False, default=str)
    except ValueError:
        return _search(plain)
    return None


def _search(plain: Any) -> str | None:
    if isinstance(plain, float):
        return None if math.isfinite(plain) else ""
    if isinstance(plain, Mapping):
        members = list(plain.items())
    elif isinstance(plain, list | tuple | set | frozenset):
        members = list(enumerate(plain))
    else:
        return None
    for key, member in members:
        if (place := _search(member)) is not None:
            return f"{key}.{place}" if place else str(key)
    return None


# --- types -----------------------------------------------------------------------------------------------------------


def hints_of(function: Callable[..., Any], where: str) -> dict[str, Any]:
    """The annotations of a function as msgspec can read them. Raises UnsupportedType."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        names = ", ".join(f"{name}: {text!r}" for name, text in function.__annotations__.items())
        raise UnsupportedType(
            f"an annotation of {where} cannot be resolved ({names}): {error}; "
            "its name must be known in the module, not only for type checkers"
        ) from error
    return {name: _readable(hint) for name, hint in hints.items()}


def struct_of(fields: list[Any], where: str) -> type[msgspec.Struct]:
    """A Struct of these fields that refuses any other one. Raises UnsupportedType."""
    struct = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
    try:
        decoder(struct)
    except TypeError as error:
        raise UnsupportedType(f"{where}: {error}") from error
    return struct


def require_json(kind: Any, what: str) -> None:
    """Raises UnsupportedType for a type that has no JSON form."""
    try:
        described = msgspec.inspect.type_info(kind)
    except (TypeError, NameError) as error:
        raise UnsupportedType(f"{what}: {error}") from error
    for part in _all_types(described, set()):
        if isinstance(part, msgspec.inspect.CustomType) and not (_is_path(part.cls) or _is_model(part.cls)):
            raise UnsupportedType(
                f"{what}: {part.cls.__module__}.{part.cls.__qualname__} has no JSON form; "
                "use a dataclass, a TypedDict or plain data, or write Any for plain JSON"
            )


def has_sets(kind: Any) -> bool:
    """Whether a value of this type may have sets in it, which have no order of their own."""
    sets = msgspec.inspect.SetType | msgspec.inspect.FrozenSetType
    return any(isinstance(part, sets) for part in _all_types(msgspec.inspect.type_info(kind), set()))


def schema(kind: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type, with its definitions inside."""
    models: dict[str, Any] = {}

    def of_custom(custom: Any) -> dict[str, Any]:
        if _is_path(custom):
            return {"type": "string", "format": "path"}
        described = custom.model_json_schema(ref_template=f"#/$defs/{custom.__qualname__}.{{model}}")
        for name, definition in described.pop("$defs", {}).items():
            models[f"{custom.__qualname__}.{name}"] = definition
        return dict(described)

    try:
        (root,), definitions = msgspec.json.schema_components([kind], schema_hook=of_custom, ref_template=_DEFINITIONS)
    except TypeError as error:
        raise UnsupportedType(f"{where} has no JSON schema: {error}") from error
    if root.get("$ref") and not _is_recursive(root["$ref"], definitions):
        root = definitions.pop(root["$ref"].rpartition("/")[2])
    definitions |= models
    return root | {"$defs": definitions} if definitions else root


def _is_recursive(reference: str, definitions: dict[str, Any]) -> bool:
    return reference in json.dumps(definitions)


def _readable(hint: Any) -> Any:
    """The annotation with what msgspec cannot read replaced by what stands for it in JSON."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is os.PathLike or origin is os.PathLike:
        return Path
    if hint is object or hint in {typing.NoReturn, typing.Never}:
        return Any
    if origin in {Union, types.UnionType}:
        members = [_readable(member) for member in arguments]
        if str in members:  # one string in JSON, whichever it was
            members = [member for member in members if not _is_path(member)]
        return Union[tuple(members)]  # noqa: UP007
    if origin in {list, set, frozenset, tuple, dict}:
        return origin[tuple(_readable(argument) for argument in arguments)]
    return hint


def _is_path(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, PurePath)


def _is_model(kind: Any) -> bool:
    """Whether it is one of pydantic's models. Told by its form: pydantic need not be there."""
    return isinstance(kind, type) and hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate_json")


def _all_types(described: Any, seen: set[int]) -> Iterator[msgspec.inspect.Type]:
    """The types that a described type is made of, itself first."""
    if isinstance(described, tuple | list):
        parts: list[Any] = list(described)
    elif isinstance(described, msgspec.inspect.Type | msgspec.inspect.Field) and id(described) not in seen:
        seen.add(id(described))
        if isinstance(described, msgspec.inspect.Type):
            yield described
        parts = [getattr(described, name) for name in described.__struct_fields__]
    else:
        return
    for part in parts:
        yield from _all_types(part, seen)
