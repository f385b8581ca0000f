"""`python -m tests.soak.leaky daemon`: semtask with a leak, to see that the soak finds it.

TEST_LEAK says of what the daemon keeps a little for each attempt that ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semtask.store.sqlite import SqliteStore
from tests.daemon.rig import Daemon

ROOT = Path(__file__).resolve().parents[2]
ENV = "TEST_LEAK"
_kept: list[Any] = []


def _a_descriptor() -> None:
    _kept.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def _memory() -> None:
    _kept.append(bytearray(os.urandom(16 * 1024)))


LEAKS: dict[str, Callable[[], None]] = {"descriptors": _a_descriptor, "memory": _memory}


class LeakyBuild(Daemon):
    entry = ("tests.soak.leaky", "daemon")

    def __init__(self, home: Path, leak: str, **env: str) -> None:
        super().__init__(home, **{ENV: leak, "PYTHONPATH": str(ROOT), **env})


def main() -> None:
    leak = LEAKS[os.environ.pop(ENV)]
    finish, finish_many = SqliteStore.finish, SqliteStore.finish_many

    async def leaky_finish(self: SqliteStore, finished: Any) -> Any:
        leak()
        return await finish(self, finished)

    async def leaky_finish_many(self: SqliteStore, finished: Any) -> Any:
        for _ in finished:
            leak()
        return await finish_many(self, finished)

    SqliteStore.finish = leaky_finish  # type: ignore[assignment, method-assign]
    SqliteStore.finish_many = leaky_finish_many  # type: ignore[assignment, method-assign]
    from semtask.cli.main import main as program

    program()


if __name__ == "__main__":
    main()
