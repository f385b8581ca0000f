"""Making functions tasks: names, options, what is refused, and that calling them stays calling them."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from semtask import AsyncTask, Retry, Semantica, Task
from semtask.tasks.registry import DuplicateTask

app = Semantica(home="/nowhere", autostart=False)


@app.task
def index_file(path: str, *, force: bool = False) -> int:
    """Count characters."""
    return len(path) + force


@app.task(queue="net", retry=Retry(3, base=0.5), timeout=10, name="fetch")
async def fetch(url: str) -> list[str]:
    await asyncio.sleep(0)
    return [url]


class Jobs:
    @staticmethod
    @app.task
    def clean(days: int) -> None: ...


def test_calling_a_task_calls_the_function() -> None:
    assert index_file("abc", force=True) == 4
    assert asyncio.run(fetch("u")) == ["u"]
    assert isinstance(index_file, Task)
    assert isinstance(fetch, AsyncTask)
    assert index_file.__doc__ == "Count characters."
    assert list(inspect.signature(index_file).parameters) == ["path", "force"]


def test_names() -> None:
    assert index_file.name == "tests.sdk.test_tasks:index_file"
    assert Jobs.clean.name == "tests.sdk.test_tasks:Jobs.clean"
    assert fetch.name == "fetch"
    assert {task.name for task in app.registry} == {index_file.name, Jobs.clean.name, fetch.name}


def test_the_registry_has_what_a_worker_needs() -> None:
    definition = app.registry.get("fetch")
    assert definition is not None
    assert definition.is_async
    assert definition.function is fetch.__wrapped__  # type: ignore[attr-defined]
    assert definition.options.defaults() == {
        "queue": "net",
        "max_attempts": 3,
        "backoff_factor": 2.0,
        "retry_base_delay_ms": 500,
        "retry_max_delay_ms": 3_600_000,
        "timeout_ms": 10_000,
    }
    args, kwargs = definition.signature.decode_arguments(definition.signature.encode_arguments(("u",), {}))
    assert asyncio.run(definition.function(*args, **kwargs)) == ["u"]


def _script(tmp_path: Path, *command: str) -> str:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    text = "from semtask import Semantica\napp = Semantica()\n@app.task\ndef work() -> None: ...\nprint(work.name)\n"
    for file in (package / "jobs.py", tmp_path / "script.py", package / "__main__.py"):
        file.write_text(text)
    done = subprocess.run(
        [sys.executable, *command], check=False, cwd=tmp_path, input=text, capture_output=True, text=True
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["script.py"], "script:work"),
        (["-m", "pkg.jobs"], "pkg.jobs:work"),
        (["-m", "pkg"], "pkg.__main__:work"),
    ],
)
def test_a_script_that_is_run_names_its_tasks_as_those_who_import_it(
    tmp_path: Path, command: list[str], name: str
) -> None:
    assert _script(tmp_path, *command).strip() == name


def test_a_task_in_no_file_needs_a_name(tmp_path: Path) -> None:
    assert "ValueError: work is defined in no file, so no worker can import it" in _script(tmp_path, "-")


def test_a_function_that_cannot_be_found_again_needs_a_name() -> None:
    def nested() -> None: ...

    fresh = Semantica()
    with pytest.raises(ValueError, match="a lambda needs a name of its own"):
        fresh.task(lambda: None)
    with pytest.raises(ValueError, match="nested', which stands inside of a function"):
        fresh.task(nested)
    assert fresh.task(name="mine")(nested).name == "mine"


def test_two_tasks_of_one_name() -> None:
    fresh = Semantica()
    fresh.task(name="a")(index_file.__wrapped__)  # type: ignore[attr-defined]
    with pytest.raises(DuplicateTask, match=r"two tasks of one name: 'a'.*test_tasks.py:\d+.*test_tasks.py:\d+"):

        @fresh.task(name="a")
        def other() -> None: ...


def test_what_cannot_be_a_task() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    for function in (numbers, later):
        with pytest.raises(TypeError, match=r"returns one result; .* is a generator"):
            app.task(name="x")(function)
    wrong: Any = 5
    with pytest.raises(TypeError, match="a task is a function, not 5"):
        app.task(wrong)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"timeout": -1}, ValueError, "timeout must be seconds"),
        ({"priority": 500}, ValueError, "priority"),
        ({"quue": "x"}, TypeError, "quue"),
    ],
)
def test_wrong_options_fail_at_the_decorator(options: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        app.task(**options)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"prio": 1}, TypeError, "unknown option 'prio'"),
        ({"delay": 1, "at": None}, ValueError, "delay and at exclude each other"),
        ({"timeout": "long"}, ValueError, "timeout must be seconds"),
    ],
)
def test_wrong_options_fail_at_using(options: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        index_file.using(**options)


def test_a_task_is_pickled_by_its_name_as_functions_are() -> None:
    assert pickle.loads(pickle.dumps(index_file)) is index_file


def test_nothing_is_opened_for_a_task_that_is_only_called(tmp_path: Path) -> None:
    fresh = Semantica(home=tmp_path / "home")
    fresh.task(index_file.__wrapped__)  # type: ignore[attr-defined]
    fresh.close()
    assert list(tmp_path.iterdir()) == []
