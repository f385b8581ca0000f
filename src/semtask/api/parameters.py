"""Reading the parameters of a method: typed, complete, and nothing ignored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from semtask.errors import InvalidParams, ValidationError, suggestion
from semtask.protocol.enqueue import EnqueueManyParams, EnqueueParams
from semtask.protocol.fields import Params
from semtask.protocol.jsonrpc import MAX_PAYLOAD_DEPTH, deeper_than
from semtask.protocol.methods import Method

_PROBLEM = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>\$.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[[^\]]*\]")


class ParameterReader:
    """Reads the parameters of one method."""

    def __init__(self, method: Method) -> None:
        self._type = method.params
        self._names = [json.dumps(name).encode() for name in method.params.__struct_encode_fields__]
        self._decoder = msgspec.json.Decoder(method.params)
        self._unserved = [tuple(name.split(".")) for name in sorted(method.unserved)]

    def read(self, params: msgspec.Raw) -> Params:
        """The parameters as the method's type.

        An array has the values in the order of the reference page. Raises InvalidParams if they are neither an object
        nor an array that is short enough, and ValidationError with the JSON path for anything else that is
        wrong. A parameter that this version does not serve is no field, so the decoder finds it, and it is named first.
        """
        if bytes(memoryview(params)[:1]) == b"[":
            params = self._by_name(params)
        if bytes(memoryview(params)[:1]) != b"{":
            raise InvalidParams
        try:
            found = self._decoder.decode(params)
        except msgspec.ValidationError as error:
            self._refuse_unserved(params)
            raise _explain(self._type, str(error)) from None
        if deeper_than(params, MAX_PAYLOAD_DEPTH):
            _require_depth(found)
        return found

    def _by_name(self, params: msgspec.Raw) -> msgspec.Raw:
        values = msgspec.json.decode(params, type=list[msgspec.Raw])
        if len(values) > len(self._names):
            raise InvalidParams(f"there are {len(values)} parameters, and this method has {len(self._names)}")
        members = (name + b":" + bytes(value) for name, value in zip(self._names, values, strict=False))
        return msgspec.Raw(b"{" + b",".join(members) + b"}")

    def _refuse_unserved(self, params: msgspec.Raw) -> None:
        content = msgspec.json.decode(params)
        for names in self._unserved:
            path = next(_places(content, names, "$"), None)
            if path is not None:
                raise _invalid(f"`{names[-1]}` is not served by this version", path)


def _places(content: Any, names: Sequence[str], path: str) -> Iterator[str]:
    """The JSON paths at which the parameter was sent."""
    if isinstance(content, list):
        for index, item in enumerate(content):
            yield from _places(item, names, f"{path}[{index}]")
    elif isinstance(content, dict) and names[0] in content:
        here = f"{path}.{names[0]}"
        if len(names) == 1:
            yield here
        else:
            yield from _places(content[names[0]], names[1:], here)


def _require_depth(params: Params) -> None:
    if isinstance(params, EnqueueManyParams):
        jobs = [(f"$.jobs[{index}].payload", job) for index, job in enumerate(params.jobs)]
    elif isinstance(params, EnqueueParams):
        jobs = [("$.payload", params)]
    else:
        jobs = []
    for path, job in jobs:
        if deeper_than(job.payload, MAX_PAYLOAD_DEPTH):
            raise _invalid(f"nested deeper than {MAX_PAYLOAD_DEPTH} levels - at `{path}`", path)


def _explain(params: type[Params], text: str) -> ValidationError:
    """msgspec's message, with what it leaves out: the choices, the meaning of a pattern, the name that was meant."""
    match = _PROBLEM.fullmatch(text)
    what, path = (match["what"], match["path"] or "$") if match else (text, "$")
    place = _Place(inspect.type_info(params))
    for step in _STEP.finditer(path):
        place = place.below(step[1])
    if unknown := _UNKNOWN.fullmatch(what):
        name = unknown[1][:128]
        return _invalid(
            f"there is no parameter `{name}`{suggestion(name, place.names)} - at `{path}`", f"{path}.{name}"
        )
    if missing := _MISSING.fullmatch(what):
        return _invalid(f"the parameter `{missing[1]}` is missing - at `{path}`", f"{path}.{missing[1]}")
    if place.description and "regex" in what:
        what = f"expected {place.description}"
    elif place.choices:
        what = f"expected one of {', '.join(place.choices)}"
    return _invalid(f"{what[:1].lower()}{what[1:]} - at `{path}`", path)


def _invalid(message: str, path: str) -> ValidationError:
    return ValidationError(message, details={"parameter": path.removeprefix("$").removeprefix("."), "path": path})


class _Place:
    """What is known of the type at a JSON path."""

    def __init__(self, kind: inspect.Type | None) -> None:
        self.description = ""
        if isinstance(kind, inspect.UnionType):
            kind = next((t for t in kind.types if not isinstance(t, inspect.NoneType)), None)
        if isinstance(kind, inspect.Metadata):
            self.description = (kind.extra_json_schema or {}).get("description", "")
            kind = kind.type
        self._kind = kind

    def below(self, name: str | None) -> _Place:
        """The place of a field, or of the items if `name` is None."""
        if isinstance(self._kind, inspect.StructType):
            return _Place(next((f.type for f in self._kind.fields if f.encode_name == name), None))
        return _Place(getattr(self._kind, "item_type", None) or getattr(self._kind, "value_type", None))

    @property
    def names(self) -> list[str]:
        return [f.encode_name for f in self._kind.fields] if isinstance(self._kind, inspect.StructType) else []

    @property
    def choices(self) -> list[str]:
        if isinstance(self._kind, inspect.EnumType):
            return [str(member.value) for member in self._kind.cls]
        return [str(value) for value in self._kind.values] if isinstance(self._kind, inspect.LiteralType) else []
