"""One who follows a page: saves its files and types its commands at a terminal, in a home of their own."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from tests.cli.rig import Terminal
from tests.docs.pages import Block, Command, commands

HOME = "/home/you"


class Reader:
    """`folder` is where the reader begins; `$?` is handed from one command to the next."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "you"
        self.folder = self.home
        config = self.home / ".config" / "semtask" / "config.toml"
        config.parent.mkdir(parents=True)
        # They are shown in tables, and else follow from the CPUs of this machine.
        config.write_text("queue_concurrency = 4\nmax_processes = 8\n")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SEMANTICA_", "XDG_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = {**clean, "HOME": str(self.home), "PATH": path, "TERM": "dumb"}
        self._code = 0

    def follow(self, block: Block) -> list[tuple[Command, int, list[str]]]:
        """What each command of the block ended with and showed."""
        if block.file:
            (self.folder / block.file).write_text(block.text)
        return [(c, *self.type(c.text)) for c in commands(block)] if block.language == "console" else []

    def type(self, text: str) -> tuple[int, list[str]]:
        script = f"cd {self.folder}; (exit {self._code}); {text}"
        with Terminal(["/bin/bash", "-c", script], self.env) as terminal:
            self._code, shown = terminal.finish()
        if text.startswith("cd "):
            self.folder = (self.folder / text.removeprefix("cd ")).resolve()
        return self._code, shown.replace(str(self.home), HOME).splitlines()

    def processes(self) -> list[int]:
        """Living processes with this home in their environment."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                if f"HOME={self.home}".encode() in environ:
                    found.append(int(entry))
        return found
