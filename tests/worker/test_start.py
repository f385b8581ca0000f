"""From Setup to Hello, or to the reason why not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from semtask.protocol.frames import PROTOCOL
from tests.worker.rig import APP, unprepared, worker

TASKS = '''
from semtask.tasks.options import TaskOptions

@app.task
def add(a: int, b: int = 2) -> int:
    """Add two numbers.

    At length.
    """
    return a + b

@app.task
async def fetch(url: str) -> None: ...

app.registry.add(TaskDefinition("named", len, False, TaskOptions({"queue": "q", "timeout_ms": 5}, 3)))
'''


def test_says_which_tasks_its_app_offers(tmp_path: Path) -> None:
    with unprepared(tmp_path, {"jobs.py": APP + TASKS}) as rig:
        rig.setup()
        hello = rig.hello()
        assert (hello.protocol, hello.pid, hello.python) == (PROTOCOL, rig.pid, sys.version.split()[0])
        add, fetch, named = hello.tasks
        assert (add.name, add.is_async, add.doc) == ("jobs:add", False, "Add two numbers.")
        assert add.parameters["required"] == ["a"]
        assert add.returns == {"type": "integer"}
        assert (fetch.name, fetch.is_async) == ("jobs:fetch", True)
        assert (named.name, named.defaults, named.concurrency) == ("named", {"queue": "q", "timeout_ms": 5}, 3)


REAL = "from semtask import Semantica\napp = Semantica(autostart=False)\n"
FAILURES = {
    "a module that is not there": ({}, "jobs:app", "ModuleNotFoundError: No module named 'jobs'"),
    "an error in its code": ({"jobs.py": "x = 1\ny = 1 / 0\n"}, "jobs:app", "jobs.py, line 2"),
    "a syntax error": ({"jobs.py": "x = 1\ny = (\n"}, "jobs:app", "(jobs.py, line 2)"),
    "sys.exit": ({"jobs.py": "import sys\nsys.exit(3)\n"}, "jobs:app", "it called sys.exit(3)"),
    "a module that it needs": ({"jobs.py": "import nothing_such\n"}, "jobs:app", "No module named 'nothing_such'"),
    "an error two modules away": (
        {"jobs.py": "import other\n", "other.py": "\n\nraise ValueError('bad')\n"},
        "jobs:app",
        "ValueError: bad",
    ),
    "it enqueues": (
        {"jobs.py": REAL + "@app.task\ndef a(): ...\na.enqueue()\n"},
        "jobs:app",
        "RuntimeError: the daemon was asked for something while a worker imported the module of the app",
    ),
    "a module of it awaits": (
        {"jobs.py": "import other\n", "other.py": REAL + "import asyncio\nasyncio.run(app.job('x').aresult())\n"},
        "jobs:app",
        "put what the program does below `if __name__ == '__main__':` (",
    ),
    "no such attribute": ({"jobs.py": "x = 1\n"}, "jobs:app", "has no 'app'"),
    "something else than an app": ({"jobs.py": "app = {}\n"}, "jobs:app", "is no app but a dict"),
    "no attribute named": ({"jobs.py": "app = {}\n"}, "jobs", "must be module:attribute"),
    "two tasks of one name": (
        {"jobs.py": APP + "@app.task\ndef a(): ...\n@app.task\ndef a(): ...\n"},
        "jobs:app",
        "DuplicateTask: two tasks of one name: 'jobs:a'",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_says_why_an_app_cannot_be_used(tmp_path: Path, failure: str) -> None:
    files, app, why = FAILURES[failure]
    with unprepared(tmp_path, files) as rig:
        rig.setup(app)
        failed = rig.failed()
        assert why in failed.error
        assert "\n" not in failed.error
        if failure == "an error two modules away":
            assert "other.py, line 3" in failed.error
            assert "import other" in failed.traceback
            assert "semtask" not in failed.traceback
        assert rig.rest() == []
        assert rig.process.wait(10) == 1


REFUSED = {
    "thread": (
        "x: threading.Thread",
        "parameter 'x' of the task jobs:{}: threading.Thread has no JSON form; use a data",
    ),
    "deep": (
        "x: dict[str, list[complex]]",
        "parameter 'x' of the task jobs:{}: complex has no JSON form; write tuple",
    ),
    "call": ("x: int, f: Callable[[int], str]", "parameter 'f' of the task jobs:{}: .*name of the function as a str"),
    "protocol": ("x: SupportsInt", "parameter 'x' of the task jobs:{}: typing.SupportsInt has no JSON form; use"),
    "missing": ("x: Missing", r"annotation .* jobs:{} .*\(parameter 'x': 'Missing'\).*import the name in the module"),
    "checked": ("x: int, y: CheckedOnly", r"\(parameter 'y': 'CheckedOnly'\).*not only under TYPE_CHECKING"),
    "broken": ("x: '1 +'", r"annotation of the task jobs:{} cannot be resolved \(parameter 'x': .*1 \+"),
    "keys": ("x: dict[int | str, int]", r"keys of int or str.*write dict\[str, \.\.\.\]"),
    "default": ("x: defaultdict[str, int]", "write dict"),
    "params": ("*args: P.args, **kwargs: P.kwargs", "parameter 'args' of the task jobs:{}: .*write out the parameters"),
    "me": ("x: Self", "parameter 'x' of the task jobs:{}: .*write the name of the class"),
    "secret": ("x: SecretStr", "parameter 'x' of the task jobs:{}: .*a secret is not"),
    "gives": ("", "the result of the task jobs:{}: .*Iterator.*write list"),
}
BAD = (
    APP
    + """
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import *
from uuid import UUID
from pydantic import SecretStr
if TYPE_CHECKING:
    from nowhere import CheckedOnly
P = ParamSpec("P")
T = TypeVar("T")
Name = NewType("Name", str)

@dataclass
class A:
    x: int

@dataclass
class B:
    x: str

class Later:
    pass

@app.task
def good(a: A | B, k: UUID | str, d: "date | datetime", c: Counter[str], q: deque[int], t: T, n: Name,
         l: "Literal['x', True]", o: Annotated[int, "text"], *more: A | B, **rest: date | datetime) -> A | B: ...
"""
)


def test_one_bad_annotation_costs_one_task(tmp_path: Path) -> None:
    functions = "".join(
        f"@app.task\ndef {name}({parameters}){' -> Iterator[int]' if name == 'gives' else ''}: ...\n"
        for name, (parameters, _) in REFUSED.items()
    )
    with unprepared(tmp_path, {"jobs.py": f"from __future__ import annotations\n{BAD}{functions}"}) as rig:
        rig.setup()
        hello = rig.hello()
        assert [task.name for task in hello.tasks] == ["jobs:good"], hello.refused
        assert hello.refused.keys() == {f"jobs:{name}" for name in REFUSED}
        for name, (_, why) in REFUSED.items():
            told = hello.refused[f"jobs:{name}"]
            assert re.search(why.format(name), told, re.DOTALL), told
            assert "functools" not in told


def test_names_both_protocols_where_they_differ(tmp_path: Path) -> None:
    with unprepared(tmp_path, {"jobs.py": APP}) as rig:
        rig.setup(protocol=PROTOCOL + 1)
        error = rig.failed().error
        assert f"the daemon speaks protocol {PROTOCOL + 1}" in error
        assert f"speaks {PROTOCOL}:" in error
        assert rig.process.wait(10) == 70


def test_names_the_versions_where_the_daemon_is_not_understood(tmp_path: Path) -> None:
    with unprepared(tmp_path, {"jobs.py": APP}) as rig:
        rig.daemon.sendall(b"\0\0\0\1\x80")
        assert "of one version?" in rig.failed().error
        assert rig.process.wait(10) == 70


def test_what_an_import_prints_is_in_the_workers_own_log(tmp_path: Path) -> None:
    text = "import os, logging\nprint('from print')\nos.write(1, b'from fd 1\\n')\nlogging.warning('from logging')\n"
    with worker(tmp_path, text) as rig:
        assert rig.own_log.read_text() == "from print\nfrom fd 1\nWARNING:root:from logging\n"


def test_leaves_when_the_daemon_goes_before_it_was_told_anything(tmp_path: Path) -> None:
    with unprepared(tmp_path, {}) as rig:
        assert rig.hang_up() == 0


def test_leaves_with_the_exit_functions_of_its_app(tmp_path: Path) -> None:
    with worker(tmp_path, "import atexit\natexit.register(lambda: print('good bye'))\n") as rig:
        assert rig.hang_up() == 0
        assert rig.own_log.read_text() == "good bye\n"


def test_says_what_it_is_to_who_starts_it_by_hand() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "semtask.worker"],
        capture_output=True,
        text=True,
        check=False,
        close_fds=True,
        timeout=20,
    )
    assert found.returncode == 1
    assert "is started by the daemon of semtask" in found.stderr


def test_needs_neither_the_store_nor_the_server(tmp_path: Path) -> None:
    with worker(
        tmp_path,
        """
        @app.task
        def loaded() -> list[str]:
            return [name for name in sys.modules if name.startswith(("apsw", "semtask.", "asyncio", "httptools"))]
        """,
    ) as rig:
        loaded = rig.run("loaded").result or ""
        ours = [f"semtask.{package}" for package in ("store", "engine", "api", "executors", "workers", "launch")]
        for name in ("apsw", "httptools", *ours):
            assert f'"{name}' not in loaded
