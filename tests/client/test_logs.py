"""Reading logs, without a daemon."""

from __future__ import annotations

from typing import Any

import pytest

from semtask.client import logs
from semtask.client.logs import Conversation, Lines, LogReader, Piece, Read, follow
from semtask.client.messages import Message, Request, Sender


def _output(conversation: Conversation[Read], send: Sender) -> bytes:
    return b"".join(item.data for item in follow(conversation, send) if isinstance(item, Piece))


class _Log:
    """Answers logs.tail.v1 in small chunks. The bytes of `hole` are cut out."""

    def __init__(self, data: bytes, hole: range = range(0)) -> None:
        self._data = data
        self._hole = hole

    def __call__(self, request: Request[Any], /) -> Any:
        params = request.params
        size = len(self._data)
        asked = params["offset"]
        asked = max(0, size + asked) if asked < 0 else min(asked, size)
        begin = self._hole.stop if asked in self._hole else asked
        end = min(begin + 5, self._hole.start if begin < self._hole.start else size)
        return Message(
            {
                "chunk": self._data[begin:end].decode(),
                "encoding": "utf-8",
                "next_offset": end,
                "eof": end == size,
                "omitted_bytes": begin - asked,
                "attempt": 1,
            }
        )


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 9])
@pytest.mark.parametrize(
    "data", [b"", b"\n", b"a", b"a\nb", b"a\nb\nc\n", b"\n\n\n", b"a\n" + b"x" * 40 + b"\nb\n", b"y" * 30]
)
def test_the_last_lines(data: bytes, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they are: the log is searched in pieces of any size."""
    whole = data.split(b"\n") if not data.endswith(b"\n") else data[:-1].split(b"\n")
    expected = b"\n".join(whole[-lines:]) + b"\n" * data.endswith(b"\n") if lines else b""
    for first, chunk in ((3, 5), (1, 1), (4, 100)):
        monkeypatch.setattr(logs, "_FIRST_LOOK_BACK", first)
        monkeypatch.setattr(logs, "_CHUNK", chunk)
        reader = LogReader("job", "stdout", lambda: 0, follow=False)
        assert _output(reader.read(lines), _Log(data)) == expected


def test_the_last_lines_end_where_the_middle_of_the_log_is_cut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FIRST_LOOK_BACK", 3)
    monkeypatch.setattr(logs, "_CHUNK", 7)
    log = _Log(b"head\n" + b"x" * 30 + b"tail\nlast\n", hole=range(5, 35))
    for lines, expected in ((1, b"last\n"), (2, b"tail\nlast\n"), (9, b"tail\nlast\n")):
        reader = LogReader("job", "stdout", lambda: 0, follow=False)
        assert _output(reader.read(lines), log) == expected


@pytest.mark.parametrize(("whole", "expected"), [(True, b"onetwothree"), (False, b"three")])
def test_attempts_that_were_over_before_the_first_look(whole: bool, expected: bytes) -> None:
    logs = {1: "one", 2: "two", 3: "three"}

    def send(request: Request[Any], /) -> Any:
        if request.method == "dev.wait.v1":
            return Message({"jobs": [Message({"claim_no": 3, "state": "DONE", "run_at": None})], "timed_out": False})
        attempt = request.params.get("attempt", 3)
        text = logs[attempt][request.params["offset"] :]
        end = len(logs[attempt])
        answer = {"chunk": text, "encoding": "utf-8", "next_offset": end, "eof": True, "omitted_bytes": 0}
        return Message({**answer, "attempt": attempt})

    reader = LogReader("job", "stdout", lambda: 0, follow=True, whole=whole)
    assert _output(reader.read(), send) == expected


def test_lines_of_any_pieces() -> None:
    text = "one\nzwöi\n\nlast".encode()
    for size in range(1, len(text) + 1):
        lines = Lines("strict")
        found = [line for begin in range(0, len(text), size) for line in lines.feed(text[begin : begin + size])]
        assert [*found, *lines.end()] == ["one", "zwöi", "", "last"]
        assert lines.end() == []
