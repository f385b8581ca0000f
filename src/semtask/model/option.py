"""How an option of a job is declared: its bounds, its meaning, and what the SDK and the command line call it."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from inspect import get_annotations
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from msgspec import NODEFAULT, Meta, Struct, defstruct, structs

S = TypeVar("S", bound=Struct)


class Use(StrEnum):
    """Where an option can be given."""

    EVERYWHERE = "everywhere"
    ONE_JOB = "one job"  # a task cannot have it for all of its jobs
    PROGRAMS = "programs"  # the API and the clients have it; the SDK and the command line set it themselves


class Option(Struct, frozen=True):
    """Belongs in the annotation of a field.

    `meaning` says what the option does, without its unit and default: the reference, `rpc.discover`, the command line
    and the docstrings of the keywords add these. `left_out` says what None stands for. Durations are fields with names
    in `_ms`; `unit` is for other values.

    `word` is what the SDK calls it; without one it is the name of the field, of a duration without `_ms`. With `within`
    it has no word of its own: the SDK takes it as a part of that one, and `word` is what errors call it. `flags` are
    the names on the command line; without any it is `--` and the word.
    """

    meaning: str
    bounds: Meta | None = None
    use: Use = Use.EVERYWHERE
    left_out: str = ""
    unit: str = ""
    word: str = ""
    within: str = ""
    flags: tuple[str, ...] = ()


class Declared(Struct, frozen=True):
    """An option with what its field says. `kind` is without None, which stands for an option that is left out."""

    name: str
    kind: Any
    default: Any
    option: Option

    @property
    def is_duration(self) -> bool:
        return self.name.endswith("_ms")

    @property
    def word(self) -> str:
        return self.option.word or self.name.removesuffix("_ms")

    @property
    def flags(self) -> tuple[str, ...]:
        return self.option.flags or ("--" + self.word.replace("_", "-"),)

    @property
    def measured(self) -> str:
        """The meaning, with the unit of the API."""
        unit = "ms" if self.is_duration else self.option.unit
        return f"{self.option.meaning}, {unit}" if unit else self.option.meaning

    @property
    def meaning(self) -> str:
        """The whole meaning in the API, but for a default that is a value."""
        return f"{self.measured}; default: {self.option.left_out}" if self.option.left_out else self.measured


@cache
def declared(struct: type[Struct]) -> tuple[Declared, ...]:
    """The options among the fields of a struct, in order."""
    kinds: dict[str, Any] = {}
    for base in reversed(struct.__mro__):
        kinds.update(get_annotations(base))
    return tuple(
        Declared(field.name, _without_none(kinds[field.name].__origin__), field.default, note)
        for field in structs.fields(struct)
        for note in getattr(kinds[field.name], "__metadata__", ())
        if isinstance(note, Option)
    )


def bounded(struct: type[S]) -> type[S]:
    """A class decorator: the same struct, which takes only values within the bounds of its options, and no null.

    A job that is stored, and one that is shown, keep to no bounds: they may come from a version that had others.
    """
    fields: list[Any] = []
    for one in declared(struct):
        bounds = one.option.bounds
        kind = one.kind if bounds is None else Annotated[one.kind, bounds]
        fields.append((one.name, kind) if one.default is NODEFAULT else (one.name, kind, one.default))
    about = {"__doc__": struct.__doc__, "__qualname__": struct.__qualname__}
    made = defstruct(struct.__name__, fields, bases=(struct,), namespace=about, module=struct.__module__, kw_only=True)
    return cast(type[S], made)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) not in {Union, UnionType}:
        return kind
    return Union[tuple(one for one in get_args(kind) if one is not type(None))]  # noqa: UP007
