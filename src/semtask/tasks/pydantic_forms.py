"""The forms of pydantic's models, and of other types that pydantic brings. It need not be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from semtask.tasks.class_forms import Fields
from semtask.tasks.forms import STATE, Form, PlainJson, Unfit, stand_in, type_name

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_PLAIN = PlainJson()


class Model(Fields):
    """One of pydantic's models. Its state is its fields, which of them were set, private attributes and extras."""

    has_code = True

    def write(self, value: Any) -> Any:
        written = super().write(value)
        state: dict[str, Any] = {"set": sorted(value.model_fields_set)}
        if value.__pydantic_extra__ is not None:
            state["extra"] = self._plain(value.__pydantic_extra__, "extra")
        if value.__pydantic_private__ is not None:
            state["private"] = self._plain(value.__pydantic_private__, "private")
        return written | {STATE: state}

    @staticmethod
    def _plain(values: dict[str, Any], what: str) -> Any:
        try:
            return _PLAIN.write(values)
        except Unfit as error:
            raise Unfit(f"{what} attribute: {error.reason}", error.place) from None

    @staticmethod
    def _get(value: Any, name: str) -> Any:
        return value.__dict__[name]

    def build(self, plain: Any) -> Any:
        if isinstance(plain, dict) and STATE in plain:
            return self._restore(plain)
        # As JSON, not as Python: a strict model takes a date from JSON as a string.
        return self.kind.model_validate_json(msgspec.json.encode(plain))

    def _made_of(self, values: dict[str, Any], state: dict[str, Any]) -> Any:
        made = self.kind.__new__(self.kind)
        made.__setstate__(
            {
                "__dict__": values,
                "__pydantic_fields_set__": set(state.get("set", values)),
                "__pydantic_extra__": state.get("extra"),
                "__pydantic_private__": state.get("private"),
            }
        )
        return made

    def schema(self, describe: Callable[[Form], dict[str, Any]]) -> dict[str, Any]:  # noqa: ARG002
        described = self.kind.model_json_schema(ref_template=f"#/$defs/{self.kind.__qualname__}.{{model}}")
        found: dict[str, Any] = _with_state(described)
        return found


class Validated(Form):
    """A type that pydantic brings or knows, such as HttpUrl: as pydantic writes it, if it reads an equal value."""

    is_custom = True
    shapes = frozenset({"string", "integer", "number", "boolean", "array", "object"})

    def __init__(self, kind: Any) -> None:
        from pydantic import TypeAdapter

        self.name = kind.__name__
        self._adapter: TypeAdapter[Any] = TypeAdapter(kind)
        self.read_as = stand_in(self)

    def owns(self, value: Any) -> bool:  # noqa: ARG002 - its values may be of another type, such as str
        return True

    def write(self, value: Any) -> Any:
        try:
            plain = self._adapter.dump_python(value, mode="json", round_trip=True, warnings="error")
            arrived = self.build(plain)
        except ValueError as error:
            raise Unfit(str(error)) from None
        if type(arrived) is not type(value) or arrived != value:
            raise Unfit(f"this {type_name(value)} would arrive as {arrived!r:.80}")
        return plain

    def build(self, plain: Any) -> Any:
        return self._adapter.validate_json(msgspec.json.encode(plain))

    def schema(self, describe: Callable[[Form], dict[str, Any]]) -> dict[str, Any]:  # noqa: ARG002
        schema: dict[str, Any] = self._adapter.json_schema()
        return schema


def _with_state(schema: Any) -> Any:
    """What pydantic says of its models, and that they may come with their state."""
    if isinstance(schema, Mapping):
        found = {key: _with_state(value) for key, value in schema.items()}
        if isinstance(found.get("properties"), dict) and found.get("type") == "object":
            found["properties"] = {**found["properties"], STATE: {"type": "object"}}
        return found
    return [_with_state(one) for one in schema] if isinstance(schema, list) else schema
