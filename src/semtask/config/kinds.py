"""What values a setting takes, as a parser and as JSON Schema."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What values a setting takes: `parse` raises ValueError for others; `schema` says it as JSON Schema."""

    parse: Callable[[Any], Any]
    schema: Mapping[str, Any]


def whole(low: int, high: int) -> Kind:
    """A whole number from `low` to `high`."""

    def parse(value: Any) -> int:
        if isinstance(value, bool):
            raise ValueError("must be a whole number")
        try:
            number = int(str(value))
        except ValueError:
            raise ValueError("must be a whole number") from None
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    return Kind(parse, {"type": "integer", "minimum": low, "maximum": high})


def _parse_switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in {"on", "true", "yes", "1"}:
        return True
    if text in {"off", "false", "no", "0"}:
        return False
    raise ValueError("must be on or off")


def percent(low: int, high: int) -> Kind:
    """A number from `low` to `high`, with or without a fraction."""

    def parse(value: Any) -> float:
        try:
            number = float(str(value)) if not isinstance(value, bool) else math.nan
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"must be a number from {low} to {high}")
        return int(number) if number.is_integer() else number

    return Kind(parse, {"type": "number", "minimum": low, "maximum": high})


def choice(*choices: str, **others: str) -> Kind:
    """One of these words; `others` are further words for some of them."""

    def parse(value: Any) -> str:
        value = others.get(value, value) if isinstance(value, str) else value
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return Kind(parse, {"enum": [*choices, *others]})


def parse_path(value: Any) -> Path:
    """Absolute, with ~ filled in; it need not exist. Raises ValueError for what is no path."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise ValueError("must be a path")
    path = Path(os.path.abspath(os.path.expanduser(os.fspath(value))))
    require_utf8(path)
    return path


def require_utf8(path: Path) -> None:
    """Raises ValueError: SQLite opens no file whose path is anything else, and JSON cannot name it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError("must be a path in UTF-8") from None


def _parse_env_patterns(value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(_is_env_pattern(item) for item in items):
        raise ValueError("must be a list of variable names, NAME or PREFIX*")
    return tuple(item.strip() for item in items)


def _is_env_pattern(item: Any) -> bool:
    return isinstance(item, str) and item.strip().removesuffix("*").replace("_", "a").isalnum()


SWITCH = Kind(_parse_switch, {"enum": [True, False, "on", "off"]})
PATH = Kind(parse_path, {"type": "string", "minLength": 1})
ENV_PATTERNS = Kind(_parse_env_patterns, {"type": "array", "items": {"type": "string", "minLength": 1}})
