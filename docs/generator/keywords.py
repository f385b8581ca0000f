"""The keywords and flags of a job's options, as code: editors, type checkers and a quick start know no other way.

A TypedDict cannot follow from a struct for a type checker, and the command line must not import the struct, which would
double its start. So both are written from it into the package, and compared with it like the reference.
"""

import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import EnumMeta
from pathlib import Path
from typing import Any

from msgspec import Meta

from generator.markdown import code, sentence, table
from semtask.model.bounds import MAX_ATTEMPTS
from semtask.model.job import JobSpec
from semtask.model.option import Declared, Use, declared

_PACKAGE = Path(__file__).resolve().parents[2] / "src" / "semtask"
_WIDTH = 120
_HELP = "help:"
_YES = {True: "yes", False: "no"}
_OPTIONS = [option for option in declared(JobSpec) if option.name not in {"job_type", "payload"}]
_OF_USERS = [option for option in _OPTIONS if option.option.use is not Use.PROGRAMS]

# The words of the SDK that are more, or something else, than one option: their types and meanings.
_COMPOSED: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "retry": {"retry": ("Retry | int", "how it is tried again if it fails: a Retry, or how often it may run in all")},
    "deadline": {
        "deadline": (
            "Seconds | datetime",
            "when the job must have ended: a time, or a duration from the enqueue, or from `delay` or `at`",
        )
    },
    "schedule": {
        "delay": ("Seconds", "it does not run before this much time has passed"),
        "at": ("datetime", "it does not run before this time, which needs a time zone"),
    },
}
_COMPOSED_OF_TASKS = {
    "deadline": ("Seconds", "how long the job may take in all, counted from its enqueue, or from `delay` or `at`")
}

# What the command line says otherwise than the API; each is the arguments of a click.option.
_FLAGS: Mapping[str, Sequence[Sequence[str]]] = {
    "schedule": (
        (
            '"--at"',
            "type=moment",
            'metavar="TIME"',
            _HELP + "Do not run it before this time: 18:00 or 2026-11-23T18:00.",
        ),
        (
            '"--in"',
            '"delay_ms"',
            "type=duration",
            'metavar="DURATION"',
            _HELP + "Do not run it before this much time has passed: 90s, 1h30m.",
        ),
    ),
    "max_attempts": (
        (
            '"--retries"',
            f"type=click.IntRange(0, {MAX_ATTEMPTS.le - 1})",
            'metavar="N"',
            _HELP + "Retry it up to N times if it fails. Default: 0, or as the task says.",
        ),
    ),
    "deadline": (
        (
            '"--deadline"',
            "type=deadline",
            'metavar="DURATION|TIME"',
            _HELP + "When the job must have ended, all attempts and pauses included: 2h (from now), or 18:00.",
        ),
    ),
}
_METAVARS = {"backoff_factor": "FACTOR", "subject_key": "KEY", "idempotency_key": "KEY"}
_COMPLETED = {"queue": "queue_names", "tag": "tag_names"}
_SHORT = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def files() -> dict[Path, str]:
    return {
        _PACKAGE / "client" / "keywords.py": _of_clients(),
        _PACKAGE / "sdk" / "keywords.py": _of_sdk(),
        _PACKAGE / "cli" / "job_options.py": _of_command_line(),
    }


def options() -> str:
    """The options of the SDK, for its reference."""
    of_tasks = {word for word, *_ in _words(of_task=True)}
    written = {_alias(enum): _literal(enum) for enum in _enums()} | {"Seconds": "timedelta | float"}
    rows = []
    for word, kind, meaning in _words(of_task=False):
        shown = re.sub(r"\w+", lambda name: written.get(name[0], name[0]), kind)
        rows.append((code(word), code(shown), _YES[word in of_tasks], sentence(f"{meaning}{_default_of(word)}")))
    return f"Durations are in seconds.\n\n{table(['option', 'type', 'of a task', 'meaning'], rows)}"


def _default_of(word: str) -> str:
    option = next((each for each in _OF_USERS if each.word == word and not each.option.within), None)
    return "" if option is None else _limits(option, _in_seconds)


# --- keywords ---------------------------------------------------------------------------------------------------------


def _of_clients() -> str:
    enums = sorted({option.kind.__name__ for option in _OPTIONS if isinstance(option.kind, EnumMeta)} | {"Schedule"})
    lines = _head("The keywords of `enqueue`, for type checkers and editors.")
    lines += ["from typing import TypedDict", "", f"from semtask.model.job import {', '.join(enums)}", "", ""]
    lines += ["class EnqueueKeywords(TypedDict, total=False):"]
    lines += [
        '    """What can be said about a job besides its type and its payload. Left out, or None: the default."""'
    ]
    for option in _OPTIONS:
        kind = f"{option.kind.__name__}{' | None' if option.default is None else ''}"
        lines += ["", f"    {option.name}: {kind}", *_docstring(f"{option.measured}{_limits(option, _in_ms)}")]
    return _text(lines)


def _of_sdk() -> str:
    lines = _head("The keywords of the options of jobs and tasks, for type checkers and editors.")
    lines += ["from datetime import datetime", "from typing import Literal, TypeAlias, TypedDict", ""]
    lines += ["from semtask.tasks.control import Retry", "from semtask.tasks.options import Seconds", ""]
    lines += [f"{_alias(enum)}: TypeAlias = {_literal(enum)}" for enum in _enums()]
    lines += ["", "", "class EnqueueOptions(TypedDict, total=False):"]
    lines += ['    """What can be said about a single job. Durations are seconds or timedelta."""']
    for word, kind, meaning in _words(of_task=False):
        lines += ["", f"    {word}: {kind}", *_docstring(f"{meaning}{_default_of(word)}")]
    lines += ["", "", "class TaskKeywords(TypedDict, total=False):"]
    lines += ['    """What a task can say for all of its jobs. Durations are seconds or timedelta."""']
    for word, kind, meaning in _words(of_task=True):
        lines += ["", f"    {word}: {kind} | None", *_docstring(f"{meaning}{_default_of(word)}")]
    return _text(lines)


def _words(*, of_task: bool) -> Iterator[tuple[str, str, str]]:
    """(word, type, meaning) of what the SDK takes."""
    seen: set[str] = set()
    for option in _OF_USERS:
        within = option.option.within
        if (of_task and option.option.use is Use.ONE_JOB) or within in seen:
            continue
        if within:
            seen.add(within)
            for word, (kind, meaning) in _COMPOSED[within].items():
                kind, meaning = _COMPOSED_OF_TASKS.get(word, (kind, meaning)) if of_task else (kind, meaning)  # noqa: PLW2901
                yield word, kind, meaning
        elif isinstance(option.kind, EnumMeta):
            yield option.word, _alias(option.kind), option.option.meaning
        else:
            yield option.word, "Seconds" if option.is_duration else option.kind.__name__, option.option.meaning


def _enums() -> list[EnumMeta]:
    found = {option.kind for option in _OF_USERS if isinstance(option.kind, EnumMeta)}
    return sorted(found, key=lambda enum: enum.__name__)


def _alias(enum: EnumMeta) -> str:
    return f"{enum.__name__}Option"


def _literal(enum: EnumMeta) -> str:
    return f"Literal[{_values(enum)}]"


def _values(enum: EnumMeta) -> str:
    return ", ".join(f'"{member.value}"' for member in enum)  # type: ignore[var-annotated]


# --- flags ------------------------------------------------------------------------------------------------------------


def _of_command_line() -> str:
    lines = _head("The options of a job on the command line.")
    lines += ["from collections.abc import Callable", "from typing import Any", "", "import click", ""]
    lines += ["from semtask.cli.arguments import deadline, duration, duration_within, moment, number_within"]
    lines += ["from semtask.cli.complete import queue_names, tag_names", ""]
    lines += [f"{_type_name(option)} = {_type(option)}" for option in _OF_USERS if _is_bounded(option)]
    lines += ["", "JOB_OPTIONS: tuple[Callable[[Any], Any], ...] = ("]
    for option in _OF_USERS:
        for arguments in _FLAGS.get(option.name) or [_arguments(option)]:
            lines += ["    click.option(", *(line for each in arguments for line in _argument(each)), "    ),"]
    return _text([*lines, ")"])


def _arguments(option: Declared) -> Iterator[str]:
    flags = [f"{flag}/--no-{flag[2:]}" for flag in option.flags] if option.kind is bool else option.flags
    yield from (f'"{flag}"' for flag in flags)
    if option.flags[-1] != f"--{option.name.replace('_', '-')}":
        yield f'"{option.name}"'
    if option.kind is bool:
        yield "default=None"
    elif _is_bounded(option):
        yield f"type={_type_name(option)}"
    elif isinstance(option.kind, EnumMeta) or option.kind is int:
        yield f"type={_type(option)}"
    if metavar := "DURATION" if option.is_duration else _METAVARS.get(option.name):
        yield f'metavar="{metavar}"'
    if option.name in _COMPLETED:
        yield f"shell_complete={_COMPLETED[option.name]}"
    yield _HELP + sentence(option.option.meaning + _limits(option, _short))


def _argument(text: str) -> list[str]:
    if not text.startswith(_HELP):
        return [f"        {text},"]
    pieces = textwrap.wrap(text.removeprefix(_HELP), _WIDTH - 20, drop_whitespace=False, break_on_hyphens=False)
    lines = "\n        ".join(json.dumps(piece, ensure_ascii=False) for piece in pieces)
    return f"        help={lines},".split("\n")


def _is_bounded(option: Declared) -> bool:
    """Whether its values have a type of ours: click has none for durations, and takes NaN for a number in any range."""
    return option.is_duration or option.kind is float


def _type_name(option: Declared) -> str:
    return option.flags[-1].removeprefix("--").replace("-", "_")


def _type(option: Declared) -> str:
    if isinstance(option.kind, EnumMeta):
        return f"click.Choice([{_values(option.kind)}])"
    kind = "duration_within" if option.is_duration else "number_within" if option.kind is float else "click.IntRange"
    bounds = option.option.bounds or Meta()
    return f"{kind}({bounds.ge}, {bounds.le})"


# --- text -------------------------------------------------------------------------------------------------------------


def _limits(option: Declared, spell: Callable[[Declared, Any], str]) -> str:
    """What follows the meaning of an option: its default and its bounds, as far as they say something."""
    words = []
    if option.option.left_out:
        words.append(f"default: {option.option.left_out}")
    elif option.default is not None and option.default is not False:
        words.append(f"default: {spell(option, option.default)}")
    bounds = option.option.bounds
    if bounds is not None and bounds.le is not None and not option.option.unit:
        if not option.is_duration:
            words.append(f"{bounds.ge} to {bounds.le}")
        elif bounds.le <= _SHORT["d"]:
            words.append(f"at most {spell(option, bounds.le)}")
    return f". {sentence('; '.join(words))}" if words else ""


def _short(option: Declared, value: Any) -> str:
    if not option.is_duration:
        return _plain(value)
    unit = next(unit for unit, ms in _SHORT.items() if value % ms == 0)
    return f"{value // _SHORT[unit]}{unit}"


def _in_ms(option: Declared, value: Any) -> str:
    return f"{value} ms" if option.is_duration else _plain(value)


def _in_seconds(option: Declared, value: Any) -> str:
    return f"{value / 1000:g} s" if option.is_duration else _plain(value)


def _plain(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


def _head(what: str) -> list[str]:
    written = "Written by docs/generate.py from model/job.py, which is the place to change it."
    return [f'"""{what}', "", written, '"""', "", "from __future__ import annotations", ""]


def _docstring(text: str) -> list[str]:
    lines = textwrap.wrap(f'"""{sentence(text)}', _WIDTH - 8, break_on_hyphens=False)
    lines = [*lines, '"""'] if len(lines) > 1 else [f'{lines[0]}"""']
    return [f"    {line}" for line in lines]


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
