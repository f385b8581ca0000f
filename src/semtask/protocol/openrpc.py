"""The API as an OpenRPC 1.4 document, built from the message types. Only what is served appears."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Any, get_args

import msgspec

from semtask.errors import BY_CODE, RpcError
from semtask.protocol.enqueue import CommandPayload, EnqueueParams
from semtask.protocol.meanings import MEANINGS
from semtask.protocol.methods import METHODS, Method

_SCHEMAS = "#/components/schemas/"
_Schema = dict[str, Any]


@cache
def document(version: str) -> _Schema:
    """The OpenRPC document of METHODS; `version` is that of the server."""
    types: list[Any] = [CommandPayload]
    types += [kind for method in METHODS.values() for kind in (method.params, *_alternatives(method.result))]
    schemas, components = msgspec.json.schema_components(types, ref_template=_SCHEMAS + "{name}")
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    payload = {"anyOf": [schema_of[repr(CommandPayload)], {"type": "object"}]}
    components[EnqueueParams.__name__]["properties"]["payload"] = payload
    for schema in components[EnqueueParams.__name__]["properties"].values():
        if schema.get("default", ...) is None:  # it stands for a parameter that is left out, and cannot be sent
            del schema["default"]
    _add_meanings(components)
    methods = [_describe(method, schema_of, components) for method in METHODS.values()]
    return {
        "openrpc": "1.4.0",
        "info": {"title": "Semantica Task Engine", "version": version, "license": {"name": "MIT"}},
        "methods": methods,
        "components": {
            "schemas": {name: _portable(components[name]) for name in sorted(_reachable(methods, components))},
            "errors": {error.kind: _describe_error(error) for error in BY_CODE.values()},
        },
    }


def _describe(method: Method, schema_of: dict[str, _Schema], components: dict[str, _Schema]) -> _Schema:
    params = _resolve(schema_of[repr(method.params)], components)
    results = [schema_of[repr(kind)] for kind in _alternatives(method.result)]
    return {
        "name": method.name,
        "summary": method.summary,
        "description": params.get("description", ""),
        "x-scope": method.scope.value,
        "paramStructure": "either",
        "params": [
            {"name": name, "required": name in params.get("required", ()), "schema": _portable(schema)}
            for name, schema in params["properties"].items()
        ],
        "result": {"name": "result", "schema": results[0] if len(results) == 1 else {"anyOf": results}},
        "errors": [{"$ref": f"#/components/errors/{error.kind}"} for error in BY_CODE.values()],
    }


def _describe_error(error: type[RpcError]) -> _Schema:
    return {"code": error.code, "message": (error.__doc__ or "").strip()}


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """msgspec describes no union of untagged structs, so its members are described one by one."""
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _resolve(schema: _Schema, components: dict[str, _Schema]) -> _Schema:
    return components[schema["$ref"].removeprefix(_SCHEMAS)] if "$ref" in schema else schema


def _add_meanings(components: dict[str, _Schema]) -> None:
    """A field says what it means, and then what its type says of every value."""
    for struct, meanings in MEANINGS.items():
        properties = components[struct.__name__]["properties"]
        for name, meaning in meanings.items():
            of_type = properties[name].get("description")
            properties[name]["description"] = f"{meaning}; {of_type}" if of_type else meaning


def _reachable(schema: Any, components: dict[str, _Schema]) -> set[str]:
    found: set[str] = set()
    waiting = list(_references(schema))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _references(components[name])
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        target = schema.get("$ref")
        if isinstance(target, str) and target.startswith(_SCHEMAS):
            yield target.removeprefix(_SCHEMAS)
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _portable(schema: Any) -> Any:
    r"""Python's end of text is \Z; a JSON Schema pattern is read as ECMAScript, where it is $."""
    if isinstance(schema, dict):
        return {
            key: re.sub(r"\\Z$", "$", value) if key == "pattern" and isinstance(value, str) else _portable(value)
            for key, value in schema.items()
        }
    return [_portable(value) for value in schema] if isinstance(schema, list) else schema
