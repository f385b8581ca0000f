"""Checks the payload of a task against the JSON schema of its parameters, before it is stored.

The schema is turned into a type of msgspec, which checks a payload in a microsecond or two. What has no counterpart
there is let through: the worker, which has the function itself, checks again.
"""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union

import msgspec

_FORMATS: Mapping[str, Any] = {
    "date-time": datetime.datetime,
    "date": datetime.date,
    "time": datetime.time,
    "duration": datetime.timedelta,
    "uuid": uuid.UUID,
    "decimal": decimal.Decimal,
}
_SIMPLE: Mapping[str, Any] = {"integer": int, "number": float, "boolean": bool, "null": None}
_BOUNDS = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
    "pattern": "pattern",
}


class Arguments:
    """The parameters of one task."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            self._decoder = msgspec.json.Decoder(_Types(schema).of(schema))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError, re.error):
            # A schema that msgspec has no type for: every object is let through.
            self._decoder = msgspec.json.Decoder(dict[str, Any])

    def problem(self, payload: bytes) -> str | None:
        """What is wrong with the payload, for people; None if it fits."""
        try:
            self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            return str(error)
        return None


class _Types:
    """The types of one schema. References are resolved once; one that leads to itself is not looked into again."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._definitions: Mapping[str, Any] = root.get("$defs", {})
        self._open: set[str] = set()

    def of(self, schema: Mapping[str, Any] | bool) -> Any:
        if isinstance(schema, bool) or not schema:
            return Any
        if "$ref" in schema:
            return self._referenced(schema["$ref"].rpartition("/")[2])
        if "anyOf" in schema:
            return _union([self.of(one) for one in schema["anyOf"]])
        if "const" in schema or "enum" in schema:
            return _literal(schema.get("enum", [schema.get("const")]))
        return self._of_type(schema)

    def _referenced(self, name: str) -> Any:
        if name in self._open:
            return Any
        self._open.add(name)
        try:
            return self.of(self._definitions[name])
        finally:
            self._open.remove(name)

    def _of_type(self, schema: Mapping[str, Any]) -> Any:
        match schema.get("type"):
            case "object":
                return self._object(schema)
            case "array":
                return self._array(schema)
            case "string":
                return self._string(schema)
            case str(name) if name in _SIMPLE:
                return _bounded(_SIMPLE[name], schema) if name != "null" else None
            case _:
                return Any

    def _string(self, schema: Mapping[str, Any]) -> Any:
        if schema.get("contentEncoding") == "base64":
            return bytes
        if "format" in schema:
            return _FORMATS.get(schema["format"], str)
        return _bounded(str, schema)

    def _array(self, schema: Mapping[str, Any]) -> Any:
        if "prefixItems" in schema and schema.get("items") is False:
            return tuple[tuple(self.of(one) for one in schema["prefixItems"])]  # type: ignore[misc]
        items = schema.get("items", {})
        return _bounded(list[self.of(items)], schema)  # type: ignore[misc]

    def _object(self, schema: Mapping[str, Any]) -> Any:
        properties = schema.get("properties")
        if properties is None:
            values = schema.get("additionalProperties", True)
            return dict[str, self.of(values)]  # type: ignore[misc]
        required = set(schema.get("required", ()))
        fields: list[Any] = []
        for index, (name, one) in enumerate(properties.items()):
            # Its own name for each field: a parameter may be called like a keyword of Python.
            field = msgspec.field(name=name) if name in required else msgspec.field(name=name, default=msgspec.UNSET)
            kind = self.of(one)
            fields.append((f"f{index}", kind if name in required else Union[kind, msgspec.UnsetType], field))  # noqa: UP007
        closed = schema.get("additionalProperties") is False
        return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=closed)


def _bounded(kind: Any, schema: Mapping[str, Any]) -> Any:
    bounds = {_BOUNDS[name]: value for name, value in schema.items() if name in _BOUNDS}
    return Annotated[kind, msgspec.Meta(**bounds)] if bounds else kind


def _literal(values: Sequence[Any]) -> Any:
    if all(value is None or (isinstance(value, str | int) and not isinstance(value, bool)) for value in values):
        return Literal[tuple(values)]
    return Any


def _union(kinds: Sequence[Any]) -> Any:
    """What msgspec cannot tell apart in a union (two kinds of objects) is not looked into."""
    union: Any = Union[tuple(kinds)]  # noqa: UP007
    try:
        msgspec.json.Decoder(union)
    except TypeError:
        return Any
    return union
