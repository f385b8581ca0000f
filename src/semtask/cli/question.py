"""A question to the person at the terminal, wherever stdin and stdout lead."""

from __future__ import annotations

import os
import termios
from contextlib import suppress

_TERMINAL = "/dev/tty"
_MAX_ANSWER = 1024


def has_terminal() -> bool:
    """Whether there is a person who could be asked."""
    fd = open_terminal()
    if fd is not None:
        os.close(fd)
    return fd is not None


def open_terminal() -> int | None:
    """The terminal of this process; None without one, and in the background, where reading from it would stop us."""
    try:
        fd = os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        if os.tcgetpgrp(fd) == os.getpgrp():
            return fd
    os.close(fd)
    return None


def ask(terminal: int, question: str) -> str:
    """The line that is answered; empty at the end of the input. Closes the terminal."""
    try:
        termios.tcflush(terminal, termios.TCIFLUSH)  # what was typed before was no answer
        os.write(terminal, f"\n{question}".encode())
        return os.read(terminal, _MAX_ANSWER).decode(errors="replace")
    except (OSError, termios.error):
        return ""
    finally:
        os.close(terminal)
