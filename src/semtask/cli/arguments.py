"""Words of the command line as values: durations, times, variables, arguments of tasks."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from semtask.config.text import decoded

if TYPE_CHECKING:
    from datetime import datetime

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": dict,
    "null": type(None),
}
_PIECE = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)


def duration(text: str) -> int:
    """'1h30m', '90s', '500ms', or seconds without a unit, in milliseconds. A type of click options."""
    ms = parse_duration(text)
    if ms is None:
        raise click.BadParameter(f"{text!r} is no duration; write it like 1h30m, 90s, 500ms or 1.5")
    return ms


def limit(text: str) -> int:
    """A duration that leaves some time."""
    ms = duration(text)
    if ms == 0:
        raise click.BadParameter(f"{text!r} leaves no time at all; without the option there is no limit")
    return ms


def duration_within(least_ms: int, most_ms: int) -> Callable[[str], int]:
    """A type of click options: durations from `least_ms` to `most_ms`."""

    def within(text: str) -> int:
        ms = limit(text) if least_ms > 0 else duration(text)
        if ms > most_ms:
            raise click.BadParameter(f"{text!r} is too long; at most {_spelled(most_ms)}")
        return ms

    return within


def _spelled(ms: int) -> str:
    unit, size = next((unit, size) for unit, size in reversed(_UNITS_MS.items()) if ms >= 2 * size or size == 1)
    return f"{ms / size:g} {unit}"


def number_within(least: float, most: float) -> Callable[[str], float]:
    """A type of click options: numbers from `least` to `most`; a float of click may be NaN."""

    def within(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise click.BadParameter(f"{text!r} is no number from {least:g} to {most:g}")
        return value

    return within


def parse_duration(text: str) -> int | None:
    """Milliseconds, or None if the text is no duration."""
    compact = text.strip().replace(" ", "").lower()
    if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", compact, re.ASCII):
        return round(float(compact) * 1000)
    pieces = _PIECE.findall(compact)
    if not pieces or "".join(number + unit for number, unit in pieces) != compact or len(compact) > 40:
        return None
    return round(sum(float(number) * _UNITS_MS[unit] for number, unit in pieces))


def moment(text: str) -> int:
    """'2026-11-23T18:00' (local time unless it has a zone) or '18:00' (the next one), in epoch ms."""
    return _moment(text, future=True)


def deadline(text: str) -> int:
    """A time that is still to come, or how long from now, in epoch ms."""
    now = round(now_ms())
    ms = parse_duration(text)
    try:
        wanted = moment(text) if ms is None else now + ms
    except click.BadParameter:
        raise click.BadParameter(
            f"{text!r} is neither a duration (1h30m) nor a time (18:00, 2026-11-23T18:00)"
        ) from None
    if wanted <= now:
        raise click.BadParameter(f"{text!r} is over: the job could never run")
    return wanted


def past(text: str) -> int:
    """How long ago, or a time ('18:00' is the last one), in epoch ms."""
    ms = parse_duration(text)
    if ms is not None:
        return max(0, round(now_ms()) - ms)
    try:
        return _moment(text, future=False)
    except click.BadParameter:
        raise click.BadParameter(
            f"{text!r} is neither a duration (1h30m) nor a time (18:00, 2026-11-23T18:00)"
        ) from None


def _moment(text: str, *, future: bool) -> int:
    from datetime import datetime

    try:
        if re.fullmatch(r"\d{1,2}:\d{2}", text, re.ASCII):
            wanted = _time_of_day(*map(int, text.split(":")), future=future)
        else:
            wanted = datetime.fromisoformat(text)
        epoch_ms = round(wanted.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{text!r} is no time; write it like 2026-11-23T18:00, with Z for UTC, or 18:00"
        ) from None
    if epoch_ms < 0:
        raise click.BadParameter(f"{text!r} lies before 1970")
    return epoch_ms


def _time_of_day(hour: int, minute: int, *, future: bool) -> datetime:
    """The next one, or the last one. Where the clock skips it that day, it is as much later as the clock skips."""
    from datetime import datetime, timedelta

    now = datetime.fromtimestamp(now_ms() / 1000)  # noqa: DTZ006 - local on purpose: the offset is that of its day
    wanted = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if future:
        return wanted if wanted > now else wanted + timedelta(days=1)
    return wanted if wanted <= now else wanted - timedelta(days=1)


def scopes(text: str) -> tuple[str, ...]:
    """Scopes of a token, by commas."""
    from semtask.model.scope import Scope

    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in set(Scope):
            raise click.BadParameter(f"{word!r} is no scope; there are {', '.join(Scope)}")
    return words


def variables(words: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """The environment that `--env K=V` and `--env K` (the caller's value) ask for."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise click.BadParameter(f"{word!r} has no name; write NAME=VALUE or NAME", param_hint="--env")
        if not equals:
            if name not in env:
                raise click.BadParameter(f"{name} is not set here; write {name}=VALUE", param_hint="--env")
            value = env[name]
        found[name] = value
    return found


def existing_folder(cwd: str | None) -> str:
    """The absolute path of --cwd, or of where we are."""
    try:
        folder = os.path.abspath(cwd or os.getcwd())
    except FileNotFoundError:
        raise click.UsageError("the current directory is gone; give another one with --cwd") from None
    if not os.path.isdir(folder):
        raise click.BadParameter(f"{cwd!r} is no directory", param_hint="--cwd")
    return folder


def require_utf8(values: Mapping[str, str]) -> None:
    """Raises UsageError for a variable or folder that cannot be stored as JSON text."""
    for name, value in values.items():
        try:
            (name + value).encode("utf-8")
        except UnicodeEncodeError:
            raise click.UsageError(
                f"{name} ({os.fsencode(value)!r}) is not UTF-8, and jobs are stored as JSON text"
            ) from None


def task_arguments(
    words: Sequence[str], payload: str | None, schema: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments of a task, from `--arg name=value` or from `--payload JSON`, `--payload @file`, `--payload -`.

    `schema` is the JSON schema of the task's payload, where it is known: it tells text from JSON.
    """
    if payload is not None and words:
        raise click.UsageError("--arg and --payload exclude each other")
    if payload is None:
        return dict(_argument(word, schema or {}) for word in words)
    if payload == "-":
        payload = sys.stdin.read().removeprefix("\ufeff")
    elif payload.startswith("@"):
        try:
            with open(payload[1:], "rb") as file:
                payload = decoded(file.read())
        except (OSError, ValueError) as error:
            raise click.BadParameter(f"cannot read {payload[1:]}: {error}", param_hint="--payload") from None
    try:
        value = json.loads(payload, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"this is no JSON: {error}", param_hint="--payload") from None
    if not isinstance(value, dict):
        raise click.BadParameter("a JSON object with the arguments by name is needed", param_hint="--payload")
    return value


def _argument(word: str, schema: Mapping[str, Any]) -> tuple[str, Any]:
    """A value that is JSON, and may be, is taken as such; anything else as a string."""
    name, equals, text = word.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{word!r} is not NAME=VALUE", param_hint="--arg")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return name, text
    wanted = schema.get("properties", {}).get(name, {})
    if not accepts(wanted, value, schema) and accepts(wanted, text, schema):
        return name, text
    return name, value


def accepts(wanted: Mapping[str, Any], value: Any, root: Mapping[str, Any]) -> bool:
    """Whether a schema, `wanted`, takes values of this kind; `root` has the definitions that it refers to.

    Only enough of JSON Schema to choose between a text and the JSON that it spells; the daemon judges values.
    """
    if "$ref" in wanted:
        return accepts(root.get("$defs", {}).get(wanted["$ref"].rpartition("/")[2], {}), value, root)
    for several in ("anyOf", "oneOf"):
        if several in wanted:
            return any(accepts(one, value, root) for one in wanted[several])
    if "enum" in wanted or "const" in wanted:
        return value in wanted.get("enum", [wanted.get("const")])
    kinds = wanted.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return not kinds or any(_is_of(kind, value) for kind in kinds)


def _is_of(kind: str, value: Any) -> bool:
    if isinstance(value, bool) or kind == "boolean":
        return isinstance(value, bool) and kind == "boolean"
    return kind in _TYPES and isinstance(value, _TYPES[kind])


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def now_ms() -> float:
    return time.time() * 1000
