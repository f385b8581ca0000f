"""Markdown, and the list of what no text explains."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

gaps: list[str] = []
"""What the code has and no text explains, and what a text explains that the code has not."""


def compare(table: Mapping[Any, Any], words: Collection[Any], where: str) -> None:
    """Note what the table lacks, and what it has too much."""
    gaps.extend(f"{where}: nothing explains {word}" for word in words if word not in table)
    gaps.extend(f"{where}: {word} is explained, and there is no such thing" for word in table if word not in words)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [_line(header), "|" + "---|" * len(header), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def code(value: object) -> str:
    return f"`{value}`"


def sentence(text: str) -> str:
    """With a capital letter and a full stop, if it has none."""
    if not text.startswith("`"):
        text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def paragraphs(docstring: str | None) -> str:
    """Each paragraph on a line."""
    return "\n\n".join(" ".join(part.split()) for part in (docstring or "").strip().split("\n\n"))


def anchor(heading: str) -> str:
    """The fragment that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
