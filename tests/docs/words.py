"""The words that this project does not use, and what it writes instead. The glossary has the words that it does use."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# A pattern, and what to write instead.
BANNED = {
    r"at once": "immediately, or simultaneously",
    r"how-manieth": "which one, counting from 1",
    r"mend(s|ed|ing)?": "fix",
    r"(tell|tells|told|telling) of": "report, say, show",
    r"can(not)? be had": "is (not) available",
    r"or else": "otherwise",
    r"its own business": "say whose task it is",
    r"not at all": "say what happens instead",
    r"as ever": "as usual, still",
    r"by and by": "over time, or say when",
    r"in silence": "silently, without a message",
    r"at hand": "available, ready",
    r"for ever": "forever",
    r"anew": "again",
    r"once more": "again",
    r"st(and|ands|ood)(?! for\b|-in\b|ing)": "is, runs, is blocked",
    r"nobody sane": "say what is wrong",
    r"of other makers": "other",
}
_BANNED = {re.compile(rf"\b{pattern}\b", re.IGNORECASE): instead for pattern, instead in BANNED.items()}
_CODE = re.compile(r"`[^`]*`|^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)


class Text(NamedTuple):
    line: int
    text: str


def of_page(path: Path) -> Iterator[Text]:
    """The prose of a page, paragraph by paragraph. Code is left out."""
    text = _CODE.sub(lambda match: "\n" * match[0].count("\n"), path.read_text(encoding="utf-8"))
    for number, line in enumerate(text.splitlines(), 1):
        yield Text(number, line)


def of_module(path: Path) -> Iterator[Text]:
    """The strings, docstrings and comments of a module."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(node.lineno, node.value)
    comments = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    for at, comment in enumerate(comments):  # a phrase may go on in the next line
        follows = comments[at + 1] if at + 1 < len(comments) else None
        goes_on = follows is not None and follows.start[0] == comment.start[0] + 1
        rest = follows.string.lstrip("# ") if follows is not None and goes_on else ""
        yield Text(comment.start[0], f"{comment.string} {rest}")


def banned(path: Path) -> Iterator[str]:
    """One line for each banned word: where it is, and what to write instead."""
    for line, text in of_module(path) if path.suffix == ".py" else of_page(path):
        for pattern, instead in _BANNED.items():
            found = pattern.search(re.sub(r"\s+", " ", text))
            if found:
                yield f"{path}:{line}: {found[0]!r}; write: {instead}"
