"""The words of the model as the integers that the database keeps.

A word's code is its place in its enum, counting from 0. So a new word goes to the end of its enum, and none is removed:
a test pins the codes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Generic, TypeVar

from semtask.model.job import ExecutionMode, OnInterrupt
from semtask.model.state import EndCause, State, StopReason

W = TypeVar("W", bound=StrEnum)


class Codes(Generic[W]):
    """The codes of one enum."""

    def __init__(self, words: type[W]) -> None:
        self.words: Sequence[W] = tuple(words)
        self._codes = {word: code for code, word in enumerate(self.words)}

    def code(self, word: W) -> int:
        return self._codes[word]

    def code_or_none(self, word: W | None) -> int | None:
        return None if word is None else self._codes[word]

    def word(self, code: int) -> W:
        """The CHECKs of the schema let no other codes in."""
        return self.words[code]

    def word_or_none(self, code: int | None) -> W | None:
        return None if code is None else self.words[code]


STATES: Final = Codes(State)
MODES: Final = Codes(ExecutionMode)
STOP_REASONS: Final = Codes(StopReason)
END_CAUSES: Final = Codes(EndCause)
INTERRUPTS: Final = Codes(OnInterrupt)
# By the column of `jobs`.
CODED: Final[
    dict[str, Codes[State] | Codes[ExecutionMode] | Codes[StopReason] | Codes[EndCause] | Codes[OnInterrupt]]
] = {
    "execution_mode": MODES,
    "state": STATES,
    "stop_reason": STOP_REASONS,
    "end_cause": END_CAUSES,
    "on_interrupt": INTERRUPTS,
}

_ENUMS: Final = {
    enum.__name__: {word.name: str(code) for code, word in enumerate(enum)}
    for enum in (State, ExecutionMode, StopReason, EndCause, OnInterrupt)
}
_NAME = re.compile(rf"\b({'|'.join(_ENUMS)})\.(\w+)\b(\((\w+)\))?")


def encode(sql: str) -> str:
    """SQL in which the words of the model are written as in Python, with their codes: `state = State.QUEUED`.

    `State.ANY` is the range of all codes, for a CHECK; `State.word(column)` is the word of a column.
    Raises KeyError for a word that the model does not have.
    """
    return _NAME.sub(_encoded, sql)


def _encoded(found: re.Match[str]) -> str:
    enum, name, _, column = found.groups()
    codes = _ENUMS[enum]
    if name == "ANY":
        return f"BETWEEN 0 AND {len(codes) - 1}"
    if name == "word":
        cases = " ".join(f"WHEN {code} THEN '{word}'" for code, word in enumerate(_words(enum)))
        return f"CASE {column} {cases} END"
    return codes[name] + (found[3] or "")


def _words(enum: str) -> Sequence[StrEnum]:
    return next(codes.words for codes in CODED.values() if type(codes.words[0]).__name__ == enum)
