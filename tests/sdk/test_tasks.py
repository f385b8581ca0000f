"""Making functions tasks: names, options, what is refused, and that calling them stays calling them."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import json
import pickle
import subprocess
import sys
import typing
import zipfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_overloads
from uuid import UUID

import pytest

import semtask
from semtask import AsyncTask, Cancel, Client, Interrupted, Permanent, Retry, Semantica, Snooze, Task
from semtask.sdk.keywords import EnqueueOptions, TaskKeywords
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
    assert definition.options.params == {
        "queue": "net",
        "max_attempts": 3,
        "backoff_factor": 2.0,
        "retry_base_delay_ms": 500,
        "retry_max_delay_ms": 3_600_000,
        "timeout_ms": 10_000,
    }
    args, kwargs = definition.signature.decode_arguments(definition.signature.encode_arguments(("u",), {}))
    assert asyncio.run(definition.function(*args, **kwargs)) == ["u"]


SCRIPT = """
from semtask import DaemonUnavailable, Semantica
app = Semantica("/nowhere", autostart=False)
@app.task
def work() -> None: ...
try:
    work.enqueue()
except DaemonUnavailable:
    print("name", work.name)
except ValueError as error:
    print("refused", error)
"""

SPAWN = (
    SCRIPT
    + """
def child():
    print("child", work.name, flush=True)
if __name__ == "__main__":
    import multiprocessing
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""
)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    for package in ("pkg", "pkg/inner", "plain", "folder"):
        (folder / package).mkdir()
    for file in ("pkg/__init__.py", "pkg/inner/__init__.py"):
        (folder / file).touch()
    texts = ("script.py", "pkg/jobs.py", "pkg/__main__.py", "pkg/inner/jobs.py", "plain/jobs.py", "folder/__main__.py")
    for file in (*texts, "my-script.py", "tool"):
        (folder / file).write_text(SCRIPT)
    (folder / "spawns.py").write_text(SPAWN)
    with zipfile.ZipFile(folder / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", SCRIPT)
    return folder


def _said(scripts: Path, *command: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, *command], check=False, cwd=scripts, input=SCRIPT, capture_output=True, text=True
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(("name ", "refused ", "child "))]
    assert said, done
    return said


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["script.py"], "script:work"),
        (["pkg/jobs.py"], "pkg.jobs:work"),
        (["pkg/inner/jobs.py"], "pkg.inner.jobs:work"),
        (["plain/jobs.py"], "jobs:work"),
        (["-m", "pkg.jobs"], "pkg.jobs:work"),
        (["-m", "pkg"], "pkg.__main__:work"),
        (["pkg/__main__.py"], "pkg.__main__:work"),
        (["-m", "cProfile", "script.py"], "script:work"),
        (["-m", "cProfile", "pkg/jobs.py"], "pkg.jobs:work"),
        (["-m", "cProfile", "-m", "pkg.jobs"], "pkg.jobs:work"),
        (["-m", "profile", "script.py"], "script:work"),
        (["-m", "trace", "--count", "--coverdir=cover", "script.py"], "script:work"),
        (["-m", "trace", "--count", "--coverdir=cover", "--module", "pkg.jobs"], "pkg.jobs:work"),
        (["-m", "pdb", "-c", "continue", "-c", "quit", "script.py"], "script:work"),
        (["-m", "pdb", "-c", "continue", "-c", "quit", "-m", "pkg.jobs"], "pkg.jobs:work"),
        (["-m", "runpy", "pkg.jobs"], "pkg.jobs:work"),
        (["-c", "import runpy; runpy.run_path('script.py', run_name='__main__')"], "script:work"),
        (["-c", "import runpy; runpy.run_path('script.py')"], "script:work"),
        (["-c", "import runpy; runpy.run_path('pkg/jobs.py', run_name='other')"], "pkg.jobs:work"),
        (["-c", "import runpy; runpy.run_module('pkg.jobs', run_name='__main__')"], "pkg.jobs:work"),
        (["-c", "from pkg import jobs"], "pkg.jobs:work"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_script_that_is_run_names_its_tasks_as_those_who_import_it(
    scripts: Path, command: list[str], name: str
) -> None:
    assert _said(scripts, *command)[0] == f"name {name}"


def test_a_spawned_child_names_the_tasks_of_its_script(scripts: Path) -> None:
    assert _said(scripts, "spawns.py") == ["name spawns:work", "name spawns:work", "child spawns:work"]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["-"], "it is defined in no file"),
        (["-c", SCRIPT], "it is defined in no file"),
        (["/dev/stdin"], "/dev/stdin is no file that can be imported"),
        (["folder"], "folder/__main__.py is what runs the folder it lies in"),
        (["folder/__main__.py"], "folder/__main__.py is what runs the folder it lies in"),
        (["app.pyz"], "app.pyz/__main__.py is no file that can be imported (a zip archive"),
        (["my-script.py"], "'my-script' in "),
        (["tool"], "tool does not end in .py"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_no_worker_could_import_is_refused_where_it_is_enqueued(
    scripts: Path, command: list[str], why: str
) -> None:
    (said,) = _said(scripts, *command)
    assert said.startswith("refused no worker can import work: ")
    assert why in said
    assert "into a module of its own, import that here, and run it: semtask up --app MODULE" in said


def test_a_function_that_cannot_be_found_again_needs_a_name() -> None:
    def nested() -> None: ...

    fresh = Semantica()
    with pytest.raises(ValueError, match="a lambda needs a name of its own"):
        fresh.task(lambda: None)
    with pytest.raises(ValueError, match="nested', which is defined inside of a function"):
        fresh.task(nested)
    assert fresh.task(name="mine")(nested).name == "mine"


def test_one_function_of_several_imports_is_one_task(tmp_path: Path) -> None:
    (tmp_path / "core.py").write_text("from semtask import Semantica\napp = Semantica()\n")
    (tmp_path / "jobs.py").write_text(
        "from core import app\n@app.task\ndef work(x: int = 1) -> int: ...\n"
        "@app.task(name='named')\nasync def other() -> None: ...\n"
        "if __name__ == '__main__':\n    import main\n"
    )
    (tmp_path / "main.py").write_text(
        "import importlib, os, sys, jobs\n"  # after the script itself
        "importlib.reload(jobs)\n"
        "text = open('jobs.py').read()\n"
        "open('jobs.py', 'w').write('# shifted\\n' * 9 + text.replace('= 1', '= 2'))\n"
        "importlib.reload(jobs)\n"
        "assert jobs.work.definition is jobs.app.registry.get('jobs:work')\n"
        "os.symlink('.', 'again')\n"
        "sys.path.append(os.path.abspath('again'))\n"
        "import again.jobs\n"  # 'named' by another name of its module
        "print(*[task.name for task in jobs.app.registry])\n"
        "text = open('jobs.py').read()\n"
        "open('jobs.py', 'w').write(text + '@app.task\\ndef work(): ...\\n')\n"
        "importlib.reload(jobs)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "jobs.py"], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "jobs:work named again.jobs:work\n", done.stderr
    assert "DuplicateTask: two tasks of one name: 'jobs:work'" in done.stderr  # two definitions in one import


def test_tasks_that_one_function_makes_need_names() -> None:
    fresh = Semantica()

    def make(number: int) -> Any:
        @fresh.task(name="made")
        def made() -> int:
            return number

        return made

    make(1)
    with pytest.raises(DuplicateTask):
        make(2)


def test_inspect_sees_what_kind_of_function_a_task_is() -> None:
    def kept(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(*args: Any) -> Any:
            return await function(*args)

        return wrapper

    wrapped = Semantica().task(name="w")(kept(fetch.__wrapped__))  # type: ignore[attr-defined]
    for task in (fetch, fetch.using(priority=1), functools.partial(fetch, "u"), wrapped, functools.partial(fetch)):
        assert inspect.iscoroutinefunction(task)
        if sys.version_info < (3, 14):  # where it is deprecated
            assert asyncio.iscoroutinefunction(task)
    assert not inspect.iscoroutinefunction(index_file)
    assert str(inspect.signature(fetch)) == "(url: 'str') -> 'list[str]'"
    assert inspect.unwrap(wrapped) is inspect.unwrap(fetch)
    assert (fetch.__name__, fetch.__module__) == ("fetch", __name__)  # type: ignore[attr-defined]
    assert typing.get_type_hints(fetch) == {"url": str, "return": list[str]}


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


WRONG: dict[str, list[Any]] = {
    "queue": ["", "a b", "a\n", 5, b"a", "x" * 65],
    "priority": [101, -101, 1.5, "1", True],
    "tag": ["", 5, "a\nb", "a\x1b[2J", "\u202ea", "x" * 257, KeyError, UUID(int=1)],
    "retry": [
        *(-1, 1001, 2.0, "3", True, Retry(3, base=-1), Retry(3, cap=-1), Retry(3, factor=0.5), Retry(True)),
        *(Retry(3, factor="2"), Retry(3, factor=float("nan")), Retry("3"), Retry(3, base="1")),  # type: ignore[arg-type]
    ],
    "timeout": [0, -1, "1", True, float("nan"), float("inf"), timedelta(-1), [1]],
    "deadline": [-1, "1m", True],
    "ttl": [0, -1, "1"],
    "grace": [-1, 61, "1"],
    "on_interrupt": ["perhaps", 1],
    "retry_on_crash": ["yes", 1],
    "durability": ["perhaps", 1],
    "on_duplicate": ["perhaps", 1],
}
WRONG_FOR_TASKS = {
    **WRONG,
    "name": ["", 5, b"a", "a\nb", "a\x1b[2J", "\u202ea", "\ud800", "x" * 129],
    "concurrency": [0, -1, 1.5, "1", True],
}
WRONG_FOR_JOBS = {
    **{name: [*values, None] for name, values in WRONG.items()},
    "subject": ["", 5, "a\0", "x" * 513, None],
    "idempotency_key": ["", 5, "x" * 257, b"k", None],
    "delay": [-1, "1", True, None],
    "at": [5, "2040-01-01", datetime(2040, 1, 1), datetime(1960, 1, 1, tzinfo=UTC), None],  # noqa: DTZ001
}


def test_wrong_options_fail_at_the_decorator_by_their_names() -> None:
    fresh = Semantica()
    for name, values in WRONG_FOR_TASKS.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                fresh.task(**{name: value})(index_file.__wrapped__)  # type: ignore[attr-defined]
    for name in ("quue", "subject", "max_attempts", "timeout_ms"):  # no names of the API
        with pytest.raises(TypeError, match=f"unknown option '{name}'"):
            fresh.task(**{name: 1})  # type: ignore[call-overload]
    assert len(fresh.registry) == 0
    given = set(inspect.signature(get_overloads(Semantica.task)[2]).parameters) - {"self", "options"}
    assert WRONG_FOR_TASKS.keys() == given | TaskKeywords.__annotations__.keys()


def test_wrong_options_fail_at_using_by_their_names() -> None:
    for name, values in WRONG_FOR_JOBS.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                index_file.using(**{name: value})
    assert WRONG_FOR_JOBS.keys() == EnqueueOptions.__annotations__.keys()
    wrong: dict[str, Any] = {"prio": 1}
    with pytest.raises(TypeError, match="unknown option 'prio'"):
        index_file.using(**wrong)
    with pytest.raises(ValueError, match="delay and at exclude each other"):
        index_file.using(delay=1, at=datetime.now(UTC))


def test_a_name_of_its_own_that_is_too_long() -> None:
    def long() -> None: ...

    long.__qualname__ = "x" * 200
    with pytest.raises(ValueError, match=r"name is not valid: .*128"):
        Semantica().task(long)


def test_what_stands_for_the_public_classes_in_a_message() -> None:
    assert repr(Retry(3)) == "Retry(3)"
    assert repr(Retry(5, base=1, factor=3.0, cap=60, delay=2, reason="r")) == (
        "Retry(5, base=1, factor=3.0, cap=60, delay=2, reason='r')"
    )
    assert repr(Snooze(3)) == "Snooze(3)"
    assert repr(Snooze(3, "later")) == "Snooze(3, 'later')"
    assert repr(Permanent("no")) == "Permanent('no')"
    assert repr(Cancel()) == "Cancel()"
    assert repr(Interrupted("cancel")) == "Interrupted('cancel')"
    assert repr(app) == f"<Semantica app with {len(app.registry)} tasks>"
    assert repr(Client("/nowhere", autostart=False)) == "<Client of /nowhere>"
    assert repr(index_file) == "Task('tests.sdk.test_tasks:index_file')"
    for kind in (getattr(semtask, name) for name in semtask.__all__):
        if isinstance(kind, type) and not issubclass(kind, BaseException):
            assert kind.__repr__ is not object.__repr__, kind
    for error in (Retry(3, base=1, reason="r"), Snooze(3, "later"), Interrupted("cancel")):
        assert repr(pickle.loads(pickle.dumps(error))) == repr(error)
        assert repr(copy.copy(error)) == repr(error)


def test_a_task_may_call_its_parameters_what_it_wants() -> None:
    @Semantica().task(name="x")
    def task(self: int, cls: int, args: int, kwargs: int, function: int, name: int) -> int:
        return self + cls + args + kwargs + function + name

    given = {"self": 1, "cls": 2, "args": 3, "kwargs": 4, "function": 5, "name": 6}
    assert task(**given) == 21
    assert json.loads(task.args(**given).payload) == given


def test_a_task_is_pickled_by_its_name_as_functions_are() -> None:
    assert pickle.loads(pickle.dumps(index_file)) is index_file


def test_nothing_is_opened_for_a_task_that_is_only_called(tmp_path: Path) -> None:
    fresh = Semantica(home=tmp_path / "home")
    fresh.task(index_file.__wrapped__)  # type: ignore[attr-defined]
    fresh.close()
    assert list(tmp_path.iterdir()) == []
