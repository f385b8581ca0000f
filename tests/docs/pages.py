"""The pages as data: their fenced blocks, their links, and the commands of a `console` block with its output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"Save this as `(?P<name>[\w./-]+)`:\s*\Z")


class Block(NamedTuple):
    """`file` is the name under which the reader saves it, if the text before it says so. `section` is its heading."""

    page: Path
    line: int
    language: str
    text: str
    file: str | None
    section: str


class Command(NamedTuple):
    line: int
    text: str
    output: list[str]


def pages() -> list[Path]:
    return [README, *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        file = _FILE.search(before)
        inner = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        section = re.findall(r"^#+ (.*)$", _FENCE.sub("", before), re.MULTILINE)[-1]
        yield Block(page, before.count("\n") + 2, match["language"], inner, file["name"] if file else None, section)


def commands(block: Block) -> list[Command]:
    r"""`$ ` begins a command, `> ` goes on with it, and so does the line after a backslash; the rest is its output."""
    found: list[Command] = []
    for number, line in enumerate(block.text.splitlines(), block.line):
        goes_on = found and not found[-1].output and found[-1].text.endswith("\\")
        if line.startswith("$ "):
            found.append(Command(number, line[2:], []))
        elif found and (goes_on or line.startswith("> ")):
            last = found.pop()
            found.append(last._replace(text=f"{last.text}\n{line if goes_on else line[2:]}"))
        else:
            assert found, f"{block.page}:{number}: output without a command"
            found[-1].output.append(line)
    return found


# What is different each time.
_VARYING = [
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>"),
    (r"\b[0-9a-f]{8}\b", "<end of id>"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<time>"),
    (r"\bpid +\d+", "pid <n>"),
    (r"\bpage \d+", "page <n>"),
    (r"\b\d+(\.\d+)? ?s\b", "<duration>"),
    (r"\b\d+(\.\d+)? (B|KiB|MiB|GiB)\b", "<size>"),
    (r"/jobs/[0-9a-f]{2}/", "/jobs/<n>/"),
    (r"\b(version|SQLite) \d+(\.\d+)*", "\\1 <n>"),
    (r" +", " "),
]


# Is said only of what has not started after two seconds: a slow machine spends them before it comes to ask.
_MAY_BE_MISSING = re.compile(r"semtask: [0-9a-f]{8} waits: ")


def comparable(line: str) -> str:
    for pattern, word in _VARYING:
        line = re.sub(pattern, word, line)
    return line.strip()


def matches(expected: list[str], received: list[str]) -> bool:
    """Line by line; a line `...` stands for any lines."""
    if not expected:
        return not received
    if expected[0].strip() == "...":
        return any(matches(expected[1:], received[skip:]) for skip in range(len(received) + 1))
    if _MAY_BE_MISSING.match(expected[0]) and matches(expected[1:], received):
        return True
    return bool(received) and comparable(expected[0]) == comparable(received[0]) and matches(expected[1:], received[1:])
