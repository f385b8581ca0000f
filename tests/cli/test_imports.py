"""What commands import: a person, or a loop in a shell, waits for it at every start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.rig import LIMIT_S, Shell

# Each of them costs about as much as everything else that a command does until the daemon has its request.
_SLOW = ("msgspec", "asyncio", "semtask.protocol", "semtask.client.calls", "subprocess", "http")


@pytest.mark.parametrize(
    "words",
    [
        "version",
        "enqueue shop:send",
        "run -d -- true",
        "run -- true",
        "ls",
        "show last",
        "logs last",
        "logs -f last",
        "wait last",
        "result last",
        "cancel last",
        "retry last",
        "queues",
        "apps",
        "tasks",
        "workers",
        "status",
    ],
)
def test_a_command_imports_nothing_slow(served: Shell, words: str) -> None:
    served("run", "-d", "--", "true")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "semtask", *words.split()],
        env=served.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "semtask.cli.main" in imported
    assert not [name for name in imported if name in _SLOW or name.startswith(tuple(f"{slow}." for slow in _SLOW))]
