"""The daemon's own log, read from its files: it matters most when the daemon does not run."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from semtask.cli.render import iso, printable
from semtask.cli.session import Session
from semtask.errors import StartupError

_POLL_S = 0.2
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
_CONSOLE = re.compile(rf"(?P<ts>{_TIME}) (?P<level>[A-Z]+) +(?P<logger>[\w.]+): (?P<event>.*)", re.ASCII)
_JSON = re.compile(rf'\{{"ts": ?"(?P<ts>{_TIME})"', re.ASCII)


def print_daemon_log(session: Session, *, follow: bool, last: int | None, since: int | None) -> None:
    """Print it, from `since` (epoch ms) or from its `last` lines on; with `follow` until Ctrl-C."""
    path = session.settings.logs_dir / "daemon.log"
    try:
        newest: IO[str] | None = _open(path)
    except FileNotFoundError:
        if not follow:
            raise StartupError(f"there is no daemon log in {path.parent} yet; `semtask up` begins it") from None
        newest = None
    lines = _lines_of(_older(path), newest)
    if since is not None:
        lines = _since(lines, iso(since))
    for line in lines if last is None else deque(lines, last):
        _print(session, line)
    if follow:
        for line in _followed(path, newest):
            _print(session, line)


def _open(path: Path) -> IO[str]:
    return path.open(encoding="utf-8", errors="backslashreplace", newline="\n")


def _older(path: Path) -> list[Path]:
    """The files that were rotated away, the oldest first."""
    numbered = [(int(p.suffix[1:]), p) for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdigit()]
    return [p for _, p in sorted(numbered, reverse=True)]


def _lines_of(older: Iterable[Path], newest: IO[str] | None) -> Iterator[str]:
    for path in older:
        try:
            with _open(path) as file:
                yield from file
        except FileNotFoundError:  # rotated while we read
            continue
    if newest is not None:
        yield from newest


def _since(lines: Iterable[str], begin: str) -> Iterator[str]:
    """From the first record that is not older than `begin` on; lines without a time belong to the one before."""
    begun = False
    for line in lines:
        if not begun:
            match = _CONSOLE.match(line) or _JSON.match(line)
            begun = match is not None and match["ts"] >= begin  # times of this form sort as text
        if begun:
            yield line


def _followed(path: Path, file: IO[str] | None) -> Iterator[str]:
    """New lines as they come; goes on in the new file when the log is rotated."""
    part = ""
    while True:
        rotated = file is None or _is_other(path, file)
        for piece in file or ():
            part += piece
            if part.endswith("\n"):
                yield part
                part = ""
        if rotated and path.exists():
            if file is not None:
                file.close()
            file = _open(path)
        else:
            time.sleep(_POLL_S)


def _is_other(path: Path, file: IO[str]) -> bool:
    try:
        return not os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False  # between two files


def _print(session: Session, line: str) -> None:
    text = line.rstrip("\n")
    if session.json:
        session.emit({"schema": "daemon_log.v1", **_fields(text)})
    else:
        session.line(printable(text))


def _fields(text: str) -> dict[str, Any]:
    """A line as the JSON format of the log has it, whichever format it was written in."""
    if _JSON.match(text):
        import json

        try:
            return dict(json.loads(text))
        except ValueError:  # the last line of a daemon that was killed
            return {"event": text}
    match = _CONSOLE.match(text)
    return {**match.groupdict(), "level": match["level"].lower()} if match else {"event": text}
