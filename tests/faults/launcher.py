"""The launcher, where new processes cannot be made when a file says so: see tests.faults.disk for the daemon's part."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from semtask.launch import launcher

CODES = {name: getattr(errno, name) for name in ("EAGAIN", "ENOMEM")}


def main(arguments: Sequence[str], ills: str) -> None:
    """`launcher:EAGAIN` in the file: it cannot fork a shim; `shim:ENOMEM`: a shim cannot spawn its program."""

    def failing(who: str, real: Callable[..., int]) -> Callable[..., int]:
        def call(*args: Any, **kwargs: Any) -> int:
            told = Path(ills).read_text().split() if Path(ills).exists() else []
            for name, code in CODES.items():
                if f"{who}:{name}" in told:
                    raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    os.fork = failing("launcher", os.fork)
    os.posix_spawn = failing("shim", os.posix_spawn)
    launcher.main(arguments)
