"""The methods of the API, from METHODS and MEANINGS."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import msgspec
from msgspec import inspect

from generator.markdown import anchor, bullets, code, gaps, paragraphs, sentence, table
from semtask.model.job import Schedule
from semtask.protocol.enqueue import CommandPayload, EnqueueParams
from semtask.protocol.fields import Params
from semtask.protocol.meanings import MEANINGS
from semtask.protocol.methods import METHODS, Method

_WHERE = "protocol/meanings.py"
_SPELLED: dict[type, str] = {
    inspect.StrType: "string",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "boolean",
    inspect.RawType: "any JSON",
    inspect.AnyType: "any JSON",
    inspect.DictType: "object",
}


def methods() -> str:
    overview = table(
        ["method", "scope", ""],
        [(f"[`{m.name}`](#{anchor(m.name)})", f"`{m.scope}`", m.summary) for m in METHODS.values()],
    )
    return "\n\n".join([overview, *map(_method, METHODS.values())])


def shapes() -> str:
    command = f"### {CommandPayload.__name__}\n\n{paragraphs(CommandPayload.__doc__)}\n\n{_parameters(CommandPayload)}"
    return "\n\n".join([command, *(_shape(struct) for struct in _shared_results())])


# --- one method ------------------------------------------------------------------------------------------------------


def _method(method: Method) -> str:
    has_parameters = bool(_fields(method.params))
    parts = [
        f"### `{method.name}`",
        method.summary,
        _own_docstring(method.params),
        _parameters(method.params) if has_parameters else "No parameters.",
        _answer(method),
        bullets(f"{error.code} {error.kind}: {sentence(when)}" for error, when in method.errors.items()),
    ]
    return "\n\n".join(part for part in parts if part)


def _answer(method: Method) -> str:
    kinds = _results(method)
    if not kinds:
        return "Answers the document."
    if len(kinds) > 1 or kinds[0] in _shared_results():
        return f"Answers {' or '.join(map(_link, kinds))}."
    return f"Answers an object. {_own_docstring(kinds[0])}".strip() + "\n\n" + _result_table(kinds[0])


def _parameters(struct: type) -> str:
    return table(["parameter", "type", "default", "limits", "meaning"], _parameter_rows(struct))


def _parameter_rows(struct: type, inside: str = "") -> Iterator[Sequence[str]]:
    _find_leftovers(struct)
    for field in _fields(struct):
        kind, limits = _bare(field.type)
        name = inside + field.encode_name
        yield code(name), _spell(kind), _default(field), limits, _meaning(struct, field.encode_name)
        if isinstance(kind, inspect.StructType):
            yield from _parameter_rows(kind.cls, f"{name}.")


# --- results ---------------------------------------------------------------------------------------------------------


def _shape(struct: type) -> str:
    return "\n\n".join(filter(None, [f"### {struct.__name__}", _own_docstring(struct), _result_table(struct)]))


def _result_table(struct: type) -> str:
    _find_leftovers(struct)
    rows = []
    for field in _fields(struct):
        may_be_null = isinstance(field.type, inspect.UnionType)
        kind = _spell(_bare(field.type)[0]) + (" or null" if may_be_null else "")
        rows.append((code(field.encode_name), kind, _meaning(struct, field.encode_name)))
    return table(["field", "type", "meaning"], rows)


def _results(method: Method) -> list[type]:
    kinds = get_args(method.result) or (method.result,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]


def _shared_results() -> list[type]:
    """The structures that are part of another one, or one of several results."""
    found: dict[type, None] = {}
    for method in METHODS.values():
        kinds = _results(method)
        if len(kinds) > 1:
            found |= dict.fromkeys(kinds)
        for kind in kinds:
            found |= dict.fromkeys(_inner(kind))
    return list(found)


def _inner(struct: type) -> Iterator[type]:
    for field in _fields(struct):
        kind = _bare(field.type)[0]
        if isinstance(kind, inspect.ListType):
            kind = _bare(kind.item_type)[0]
        if isinstance(kind, inspect.StructType):
            yield kind.cls
            if kind.cls is not struct:  # one that is part of itself was said
                yield from _inner(kind.cls)


# --- types -----------------------------------------------------------------------------------------------------------


def _fields(struct: type) -> tuple[inspect.Field, ...]:
    kind = inspect.type_info(struct)
    assert isinstance(kind, inspect.StructType)
    return kind.fields


def _own_docstring(struct: type) -> str:
    return paragraphs(struct.__dict__.get("__doc__"))


def _meaning(struct: type, name: str) -> str:
    found = MEANINGS.get(struct, {}).get(name)
    if not found:
        gaps.append(f"{_WHERE}: nothing explains {struct.__name__}.{name}")
        return ""
    return sentence(found)


def _find_leftovers(struct: type) -> None:
    there = {field.encode_name for field in _fields(struct)}
    gaps.extend(f"{_WHERE}: there is no {struct.__name__}.{name}" for name in MEANINGS.get(struct, {}).keys() - there)


def _bare(kind: inspect.Type) -> tuple[inspect.Type, str]:
    """The type without what surrounds it, and its limits."""
    words = ""
    if isinstance(kind, inspect.UnionType):
        kind = next(t for t in kind.types if not isinstance(t, inspect.NoneType))
    if isinstance(kind, inspect.Metadata):
        words = (kind.extra_json_schema or {}).get("description", "")
        kind = kind.type
    return kind, words or _limits(kind)


def _limits(kind: inspect.Type) -> str:
    low, high = (_bound(kind, names) for names in (("ge", "min_length"), ("le", "max_length")))
    unit = {inspect.StrType: " characters", inspect.ListType: " items"}.get(type(kind), "")
    if low is None and high is None:
        return _bare(kind.item_type)[1] if isinstance(kind, inspect.ListType) else ""
    if high is None:
        return f"at least {low}{unit}"
    return f"at most {high}{unit}" if low is None else f"{low} to {high}{unit}"


def _bound(kind: inspect.Type, names: Sequence[str]) -> str | None:
    return next((f"{bound:,}" for name in names if (bound := getattr(kind, name, None)) is not None), None)


def _spell(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.EnumType):
        return ", ".join(code(member.value) for member in kind.cls)
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(map(code, kind.values))
    if isinstance(kind, inspect.ListType):
        return f"array of {_spell(_bare(kind.item_type)[0])}"
    if isinstance(kind, inspect.StructType):
        return _link(kind.cls)
    return _SPELLED[type(kind)]


def _link(struct: type) -> str:
    if struct is EnqueueParams:
        return f"[parameters of dev.enqueue.v1](#{anchor('dev.enqueue.v1')})"
    # The fields of other parameters follow right behind them.
    return "object" if issubclass(struct, (Params, Schedule)) else f"[{struct.__name__}](#{anchor(struct.__name__)})"


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    if field.default_factory in {list, dict}:
        return code("[]" if field.default_factory is list else "{}")
    value: Any = field.default
    return "" if value in {msgspec.NODEFAULT, None} else code(msgspec.json.encode(value).decode())
