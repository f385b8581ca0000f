"""The JSON schema of what a form writes and reads."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

import msgspec

from semtask.tasks.class_forms import Fields
from semtask.tasks.forms import Form, UnsupportedType

_DEFINITIONS = "#/$defs/{name}"


def schema(kind: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type, with its definitions inside."""
    described = _Described(where)
    root = described.of(kind)
    if root.get("$ref") and not described.is_recursive(root["$ref"]):
        root = described.definitions.pop(root["$ref"].rpartition("/")[2])
    return root | {"$defs": described.definitions} if described.definitions else root


class _Described:
    def __init__(self, where: str) -> None:
        self._where = where
        self._names: dict[int, str] = {}
        self.definitions: dict[str, Any] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        try:
            (root,), found = msgspec.json.schema_components([kind], schema_hook=self._custom, ref_template=_DEFINITIONS)
        except TypeError as error:
            raise UnsupportedType(f"{self._where} has no JSON schema: {error}") from error
        self.definitions.update(found)
        return root

    def is_recursive(self, reference: str) -> bool:
        return reference in json.dumps(self.definitions)

    def _custom(self, kind: Any) -> dict[str, Any]:
        if issubclass(kind, PurePath):
            return {"type": "string", "format": "path"}
        form: Form = kind.form
        if not isinstance(form, Fields):
            return form.schema(self._of_form)
        if id(form) not in self._names:
            name = form.name
            while name in self.definitions:
                name += "_"
            self._names[id(form)] = name
            self.definitions[name] = {}
            described = form.schema(self._of_form)
            for inner, definition in described.pop("$defs", {}).items():
                self.definitions[f"{form.kind.__qualname__}.{inner}"] = definition
            self.definitions[name] = described
        return {"$ref": _DEFINITIONS.format(name=self._names[id(form)])}

    def _of_form(self, form: Form) -> dict[str, Any]:
        return self.of(form.read_as)
