"""The public names of the package, from their signatures and docstrings."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_overloads

import semtask
from generator import glossary
from generator.markdown import anchor, bullets, code, compare, gaps, paragraphs, sentence, table
from semtask import AsyncClient, AsyncTask, Client, Task, testing
from semtask.contrib import starlette
from semtask.sdk import command, log_lines
from semtask.sdk.embedded import Embedded

PUBLIC = {name: value for name in semtask.__all__ if callable(value := getattr(semtask, name))}
OTHERS = {
    **{name: getattr(testing, name) for name in testing.__all__},
    "Embedded": Embedded,
    "lifespan": starlette.lifespan,
    "get_client": starlette.get_client,
    "BackgroundJobs": starlette.BackgroundJobs,
}
_ORDER = [
    "sdk.app",
    "sdk.task",
    "sdk.handle",
    "tasks.context",
    "tasks.control",
    "sdk.results",
    "sdk.failures",
    "errors",
]
_CLIENTS = {Client, AsyncClient}
_AS = {AsyncTask: Task, AsyncClient: Client}  # what is as with another one
_MADE_BY_USERS = {"Semantica", "Retry", "Permanent", "Cancel", "Snooze", "Client", "AsyncClient"}
_NOT_FOR_USERS = {"definition", "blocked", "end", "send", "asend"}
_ALIASES = {
    "Seconds": "timedelta | float",
    "StrPath": "str | PathLike[str]",
    "Stderr": str(command.Stderr),
    "Stream": str(log_lines.Stream),
}
_WIDTH = 100


class _Text(str):
    """An annotation or a default as it is written."""

    def __repr__(self) -> str:
        return str(self)


def names() -> str:
    """What can be imported from the package itself."""
    compare(glossary.SDK, [*_unexplained(PUBLIC), *_unexplained(OTHERS)], "docs/generator/glossary.py, SDK")
    return _all({name: PUBLIC[name] for name in sorted(PUBLIC, key=_place)})


def others() -> str:
    """What has a module of its own, with what is needed for it."""
    return _all(OTHERS)


def _all(found: Mapping[str, Any]) -> str:
    overview = table(["name", ""], [(f"[`{n}`](#{anchor(n)})", _first_sentence(value)) for n, value in found.items()])
    return "\n\n".join([overview, *(_name(name, value) for name, value in found.items())])


def _place(name: str) -> tuple[int, int]:
    """In the order in which one meets them."""
    module = PUBLIC[name].__module__.removeprefix("semtask.")
    return (_ORDER.index(module) if module in _ORDER else len(_ORDER), inspect.getsourcelines(PUBLIC[name])[1])


# --- one name --------------------------------------------------------------------------------------------------------


def _name(name: str, value: Any) -> str:
    parts = [f"### {name}", _head(name, value), paragraphs(_own_docstring(value))]
    if value in _AS:
        parts.append(f"All else is as with [`{_AS[value].__name__}`](#{anchor(_AS[value].__name__)}).")
    elif inspect.isclass(value):
        parts += _members(value)
    return "\n\n".join(filter(None, parts))


def _head(name: str, value: Any) -> str:
    if not inspect.isclass(value):
        return _block(_call(name, value))
    if name in _MADE_BY_USERS:
        return _block(_call(name, value) if "__init__" in vars(value) else f"{name}(*args)")
    base = value.__bases__[0].__name__
    return f"A [`{base}`](#{anchor(base)})." if base in semtask.__all__ else ""


def _members(owner: type) -> Iterator[str]:
    """Its attributes as a list, then its methods; a method and its twin for asyncio are told together."""
    members = _public(owner)
    methods = {name: member for name, member in members.items() if inspect.isroutine(member) and owner not in _CLIENTS}
    others = [name for name in members if name not in methods]
    yield bullets(f"{code(name)}: {sentence(_meaning(owner, name, members[name]))}" for name in others)
    for name, method in methods.items():
        if _twin_of(name, members) is None:
            twins = [each for each in members if _twin_of(each, members) == name]
            calls = [_call(each, (get_overloads(members[each]) or [members[each]])[-1]) for each in (name, *twins)]
            yield f"#### {owner.__name__}.{name}\n\n{_block(*calls)}\n\n{_meaning(owner, name, method)}"


def _meaning(owner: type, name: str, member: Any) -> str:
    if _has_docstring(member):
        return paragraphs(inspect.getdoc(member))
    return sentence(glossary.SDK.get(f"{owner.__name__}.{name}", ""))


def _public(owner: type) -> dict[str, Any]:
    """What a class has of its own, and from those of its bases that are not public themselves."""
    found: dict[str, Any] = {}
    for kind in reversed(owner.__mro__):
        if not kind.__module__.startswith("semtask.") or (kind is not owner and kind.__name__ in semtask.__all__):
            continue
        found |= dict.fromkeys(inspect.get_annotations(kind) if dataclasses.is_dataclass(kind) else ())
        found |= {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    return {name: value for name, value in found.items() if name not in _NOT_FOR_USERS}


def _twin_of(name: str, members: Mapping[str, Any]) -> str | None:
    """The method of which this one is the coroutine."""
    of = "wait" if name == "await_end" else name.removeprefix("a")
    return of if of != name and of in members else None


def _has_docstring(member: Any) -> bool:
    return (inspect.isroutine(member) or isinstance(member, property)) and bool(inspect.getdoc(member))


def _unexplained(names: Mapping[str, Any]) -> Iterator[str]:
    """The members about which the code says nothing."""
    for name, value in names.items():
        if not _own_docstring(value):
            gaps.append(f"{value.__module__}.{name} has no docstring")
        members = _public(value) if inspect.isclass(value) and value not in _AS else {}
        silent = [n for n, found in members.items() if not _has_docstring(found) and _twin_of(n, members) is None]
        yield from (f"{name}.{member}" for member in silent)


# --- text ------------------------------------------------------------------------------------------------------------


def _block(*calls: str) -> str:
    return "\n".join(["```py", *calls, "```"])


def _call(name: str, function: Callable[..., Any]) -> str:
    """A signature as one writes it: with short names of types, and without `self`."""
    signature = inspect.signature(function)
    shown = [_shown(parameter) for parameter in signature.parameters.values() if parameter.name != "self"]
    returns = "" if inspect.isclass(function) else f" -> {_written(signature.return_annotation)}"
    text = str(signature.replace(parameters=shown, return_annotation=signature.empty))
    if len(name + text + returns) <= _WIDTH:
        return f"{name}{text}{returns}"
    star = next((n for n, p in enumerate(shown) if p.kind is p.KEYWORD_ONLY), None)
    lines = [str(parameter) for parameter in shown]
    if star is not None and not any(p.kind is p.VAR_POSITIONAL for p in shown):
        lines.insert(star, "*")
    return "\n".join([f"{name}(", *(f"    {line}," for line in lines), f"){returns}"])


def _shown(parameter: inspect.Parameter) -> inspect.Parameter:
    if parameter.annotation is not parameter.empty:
        parameter = parameter.replace(annotation=_Text(_written(parameter.annotation)))
    if inspect.isfunction(parameter.default):
        parameter = parameter.replace(default=_Text(parameter.default.__name__))
    return parameter


def _written(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"\b\w+\b", lambda word: _ALIASES.get(word[0], word[0]), text)
    return re.sub(r"\b(?:[a-z_]\w*\.)+([A-Z]\w*)", r"\1", text)


def _own_docstring(value: Any) -> str:
    return inspect.cleandoc((vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or "")


def _first_sentence(value: Any) -> str:
    return re.split(r"(?<=\.)\s", _own_docstring(value), maxsplit=1)[0]
