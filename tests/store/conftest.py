from __future__ import annotations

import asyncio
import inspect
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.store.harness import STORES, Harness


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests of the store may be coroutines; each has a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}), debug=False)
    return True


@pytest.fixture(params=STORES)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    """A place for one store of each kind."""
    return Harness(request.param, tmp_path)


Tmpfs: TypeAlias = Callable[[str], AbstractContextManager[Path]]


@pytest.fixture
def tmpfs(tmp_path: Path) -> Tmpfs:
    """A small file system of its own, of the size given: `with tmpfs("1m") as folder`."""
    folder = tmp_path / "disk"

    @contextmanager
    def mounted(size: str) -> Iterator[Path]:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {result.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    return mounted
