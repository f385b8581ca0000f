"""The forms of containers, of unions, and of what has bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Union

import msgspec

from semtask.tasks.forms import (
    TYPE,
    VALUE,
    Float,
    Form,
    Leaf,
    PlainJson,
    Text,
    Unfit,
    advice,
    encode,
    read_custom,
    stand_in,
    type_name,
    write_items,
    write_members,
)


class Items(Form):
    """list, set, frozenset and tuple[X, ...]."""

    shapes = frozenset({"array"})

    def __init__(self, kind: Any, item: Form) -> None:
        self._kind = kind
        self._item = item
        self._is_set = kind in {set, frozenset}
        self._scalar = item.read_as if type(item) is Leaf else None
        self.parts = (item,)
        self.name = kind.__name__

    @property
    def read_as(self) -> Any:
        item = self._item.read_as
        return self._kind[item, ...] if self._kind is tuple else self._kind[item]

    def owns(self, value: Any) -> bool:
        return type(value) is self._kind

    def write(self, value: Any) -> Any:
        if type(value) is not self._kind:
            raise Unfit(f"expected {self.name}, got {type_name(value)}{advice(value, self._kind)}")
        if self._scalar is not None and set(map(type, value)) <= {self._scalar}:
            written = list(value)
        else:
            written = write_items(self._item, value)
        return sorted(written, key=encode) if self._is_set else written  # equal sets are written equally

    def fits(self, plain: Any) -> bool:
        return isinstance(plain, list) and all(map(self._item.fits, plain))


class Row(Form):
    """tuple[X, Y]: each place has a type."""

    shapes = frozenset({"array"})
    name = "tuple"

    def __init__(self, parts: Sequence[Form]) -> None:
        self.parts = tuple(parts)

    @property
    def read_as(self) -> Any:
        return tuple[tuple(part.read_as for part in self.parts)] if self.parts else tuple[()]  # type: ignore[misc]

    def owns(self, value: Any) -> bool:
        return type(value) is tuple and len(value) == len(self.parts)

    def write(self, value: Any) -> list[Any]:
        if type(value) is not tuple:
            raise Unfit(f"expected a tuple, got {type_name(value)}{advice(value, tuple)}")
        if len(value) != len(self.parts):
            raise Unfit(f"expected a tuple of {len(self.parts)}, got one of {len(value)}")
        written = []
        for index, (form, item) in enumerate(zip(self.parts, value, strict=True)):
            try:
                written.append(form.write(item))
            except Unfit as error:
                raise error.inside(f"[{index}]") from None
        return written

    def fits(self, plain: Any) -> bool:
        return (
            isinstance(plain, list)
            and len(plain) == len(self.parts)
            and all(form.fits(item) for form, item in zip(self.parts, plain, strict=True))
        )


class Members(Form):
    """dict: its keys are text in JSON, and are read from it."""

    shapes = frozenset({"object"})
    name = "dict"

    def __init__(self, key: Form, value: Form) -> None:
        self._key = key
        self._value = value
        self._scalar = value.read_as if type(value) is Leaf else None
        self.parts = (key, value)

    @property
    def read_as(self) -> Any:
        return dict[str if isinstance(self._key, PlainJson) else self._key.read_as, self._value.read_as]  # type: ignore[misc]

    def owns(self, value: Any) -> bool:
        return type(value) is dict

    def write(self, value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise self._refuse(value)
        if self._scalar is not None and set(map(type, value.values())) <= {self._scalar}:
            members = dict(value)
        else:
            members = write_members(self._value, value)
        if not set(map(type, members)) <= {str} or self._key.read_as is not str:
            members = {self._write_key(key): written for key, written in members.items()}
            if len(members) < len(value):
                raise Unfit("two of its keys are the same text in JSON")
        return members

    def _write_key(self, key: Any) -> str:
        if isinstance(self._key, PlainJson) and type(key) is not str:
            raise Unfit(f"the key {key!r:.80} is a {type_name(key)}, and JSON has text only; annotate dict[KEY, VALUE]")
        try:
            plain = self._key.write(key)
        except Unfit as error:
            raise error.inside(f"[{key!r:.80}]") from None
        return plain if type(plain) is str else encode(plain).decode()

    def fits(self, plain: Any) -> bool:
        if not isinstance(plain, dict) or not all(map(self._value.fits, plain.values())):
            return False
        return isinstance(self._key, PlainJson) or Members(self._key, PlainJson()).can_read(plain)

    def can_read(self, plain: dict[str, Any]) -> bool:
        return Form.fits(self, plain)


class Made(Form):
    """Counter, deque and OrderedDict: made of a dict or a list, which is what they are in JSON."""

    is_custom = True

    def __init__(self, kind: type, inner: Form) -> None:
        self._kind = kind
        self._inner = inner
        self._plain: Any = list if isinstance(inner, Items) else dict
        self.name = kind.__name__
        self.shapes = inner.shapes
        self.parts = (inner,)
        self.read_as = stand_in(self)

    def owns(self, value: Any) -> bool:
        return type(value) is self._kind

    def write(self, value: Any) -> Any:
        if type(value) is not self._kind:
            raise self._refuse(value)
        if getattr(value, "maxlen", None) is not None:
            raise Unfit("the maxlen of a deque would be lost; pass a list")
        return self._inner.write(self._plain(value))

    def build(self, plain: Any) -> Any:
        return self._kind(self._inner.read(plain))

    def fits(self, plain: Any) -> bool:
        return self._inner.fits(plain)

    def schema(self, describe: Callable[[Form], dict[str, Any]]) -> dict[str, Any]:
        return describe(self._inner)


class Constrained(Form):
    """Annotated with bounds of msgspec's, which a value must keep before it is sent."""

    def __init__(self, inner: Form, bounds: Sequence[msgspec.Meta]) -> None:
        self._inner = inner
        self.name = inner.name
        self.shapes, self.rank = inner.shapes, inner.rank
        self.parts = (inner,)
        self._bounds = tuple(bounds)
        # Containers are looked at without what is in them, which may be of a class of the user.
        checked = {Items: list, Row: list, Members: dict[str, Any]}.get(type(inner), inner.read_as)
        self._checked = None if inner.is_custom else Annotated[checked, *self._bounds]

    @property
    def read_as(self) -> Any:
        return self._inner.read_as if self._inner.is_custom else Annotated[self._inner.read_as, *self._bounds]

    def owns(self, value: Any) -> bool:
        return self._inner.owns(value)

    def write(self, value: Any) -> Any:
        plain = self._inner.write(value)
        if self._checked is not None:
            try:
                msgspec.convert(plain, self._checked, dec_hook=read_custom, str_keys=True)
            except msgspec.ValidationError as error:
                text = str(error).replace("`", "")
                raise Unfit(text[:1].lower() + text[1:]) from None
        return plain

    def fits(self, plain: Any) -> bool:
        return self._inner.fits(plain)


class Either(Form):
    """A union. What JSON does not tell apart is written with the name of its type beside it."""

    def __init__(self, members: Sequence[Form]) -> None:
        self.parts = tuple(members)
        self.name = " or ".join(dict.fromkeys(member.name for member in members))
        self.shapes = frozenset().union(*(member.shapes for member in members))
        self._by_rank = sorted(members, key=lambda member: member.rank)
        self._labels = {id(member): label for label, member in _labelled(members)}
        self._labelled = dict(_labelled(members))
        self.is_custom = not self._is_clear()
        self._stand_in = stand_in(self) if self.is_custom else None

    def _is_clear(self) -> bool:
        others = [member for member in self.parts if member.shapes != {"null"}]
        shapes = [shape for member in others for shape in member.shapes]
        simple = all(type(member) in {Leaf, Float, Text, Items, Members} for member in others)
        return len(others) == 1 or (simple and len(shapes) == len(set(shapes)))

    @property
    def read_as(self) -> Any:
        return self._stand_in or Union[tuple(member.read_as for member in self.parts)]  # noqa: UP007

    def owns(self, value: Any) -> bool:
        return any(member.owns(value) for member in self.parts)

    def write(self, value: Any) -> Any:
        if value is None and self.shapes >= {"null"}:
            return None
        owners = [member for member in self._by_rank if member.owns(value)]
        if not owners:
            raise Unfit(f"expected {self.name}, got {type_name(value)}{advice(value)}")
        for number, member in enumerate(owners, 1):
            try:
                plain = member.write(value)
            except Unfit:
                if number == len(owners):
                    raise
            else:
                break
        if not self.is_custom or self._choose(plain) is member:
            return plain
        return {TYPE: self._labels[id(member)], VALUE: plain}

    def _choose(self, plain: Any) -> Form | None:
        """The member that plain JSON is read as."""
        if isinstance(plain, dict) and plain.keys() == {TYPE, VALUE}:
            return None
        return next((member for member in self._by_rank if member.fits(plain)), None)

    def build(self, plain: Any) -> Any:
        if isinstance(plain, dict) and plain.keys() == {TYPE, VALUE} and (label := plain[TYPE]) in self._labelled:
            return self._labelled[label].read(plain[VALUE])
        member = self._choose(plain)
        if member is None:
            raise msgspec.ValidationError(f"Expected {self.name}")
        return member.read(plain)

    def fits(self, plain: Any) -> bool:
        named = isinstance(plain, dict) and plain.keys() == {TYPE, VALUE}
        return named or any(member.fits(plain) for member in self.parts)

    def schema(self, describe: Callable[[Form], dict[str, Any]]) -> dict[str, Any]:
        named = {
            "type": "object",
            "properties": {TYPE: {"enum": list(self._labelled)}, VALUE: {}},
            "required": [TYPE, VALUE],
        }
        return {"anyOf": [*map(describe, self.parts), named]}


def _labelled(members: Sequence[Form]) -> Iterator[tuple[str, Form]]:
    taken: set[str] = set()
    for member in members:
        label = member.name
        while label in taken:
            label += "'"
        taken.add(label)
        yield label, member
