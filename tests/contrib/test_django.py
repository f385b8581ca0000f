"""Django's tasks end to end: a small site, a real daemon, and Django programs that talk to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from semtask.model.app import App
from semtask.sdk.private_daemon import AppFailed, PrivateDaemon
from tests.daemon.rig import processes_of
from tests.needs import NEEDS

FLAVOURS = [
    pytest.param(
        "django_tasks", marks=pytest.mark.skipif(NEEDS["django6"].available, reason="Django has tasks of its own here")
    ),
    pytest.param("django.tasks", marks=pytest.mark.needs("django6")),
]

SETTINGS = """
    SECRET_KEY = "x"
    USE_TZ = True
    INSTALLED_APPS = ["shop"]
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}}
    TASKS = {"default": {
        "BACKEND": "semtask.contrib.django.SemanticaBackend",
        "QUEUES": ["default", "mail"],
        "OPTIONS": OPTIONS,
    }}
"""
SEMANTICA = """
    import os
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
    from semtask.contrib.django import app
"""
TASKS = """
    import os
    from FLAVOUR import task
    from django.db import connection
    from FLAVOUR.signals import task_finished, task_started

    def note(sender, task_result, signal, **_):
        which = "started" if signal is task_started else "finished"
        with open("signals.txt", "a") as file:
            print(which, task_result.task.name, task_result.status, task_result.attempts, file=file)

    task_started.connect(note)
    task_finished.connect(note)

    @task
    def add(a, b=2):
        return {"sum": a + b, "pid": os.getpid()}

    @task(queue_name="mail", priority=7, takes_context=True)
    def with_context(context, text):
        return [text, context.attempt, context.task_result.id, context.task_result.args]

    @task
    async def aadd(a, b):
        with connection.cursor() if False else open(os.devnull):
            return a + b

    @task
    def fails(how):
        if how == "crash":
            os._exit(3)
        if how == "object":
            return object()
        raise LookupError("not here")

    @task
    def insert(name):
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS names (name TEXT)")
            cursor.execute("INSERT INTO names VALUES (%s)", [name])
            return cursor.rowcount
"""


class Site:
    def __init__(self, folder: Path, flavour: str) -> None:
        self.folder = folder
        self.flavour = flavour
        self.home = folder / "home"
        self.write("shop/__init__.py", "")
        self.write("mysite/__init__.py", "")
        self.write("mysite/settings.py", SETTINGS.replace("OPTIONS,", '{"retry": 2, "timeout": 60},'))
        self.write("mysite/semantica.py", SEMANTICA)
        self.write("shop/tasks.py", TASKS)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text).replace("FLAVOUR", self.flavour))

    def app(self, module: str = "mysite.semantica:app") -> App:
        return App(name="site", module=module, directory=str(self.folder), python=sys.executable)

    def run(self, text: str, *, code: int = 0) -> Any:
        """What a program of the site sets `answer` to; of one that fails its last line."""
        prologue = f"""
            import asyncio, json, sys, time
            import django
            django.setup()
            from shop.tasks import *
            from {self.flavour} import TaskResultStatus, default_task_backend, task_backends

            def end(result):
                until = time.monotonic() + 30
                while not result.is_finished:
                    assert time.monotonic() < until, result
                    time.sleep(0.01)
                    result.refresh()
                return result

            answer = None
        """
        program = dedent(prologue) + dedent(text) + "\nprint(json.dumps(answer))\n"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SEMANTICA_")}
        env = {**clean, "HOME": str(self.folder), "DJANGO_SETTINGS_MODULE": "mysite.settings"}
        env |= {"SEMANTICA_HOME": str(self.home), "SEMANTICA_AUTOSTART": "off", "PYTHONPATH": str(self.folder)}
        argv = [sys.executable, "-W", "error::ResourceWarning", "-c", program]
        done = subprocess.run(argv, cwd=self.folder, env=env, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == code, done.stderr
        return done.stderr.splitlines()[-1] if code else json.loads(done.stdout)


@pytest.fixture(params=FLAVOURS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path, request.param)


@pytest.fixture
def served(site: Site) -> Iterator[Site]:
    daemon = PrivateDaemon(site.home)
    try:
        daemon.start()
        daemon.serve(site.app())
        yield site
    finally:
        daemon.stop(at_once=True)
    assert not processes_of(site.folder)


def test_a_task_runs_in_a_worker_and_its_result_comes_back(served: Site) -> None:
    answer = served.run(
        """
        result = add.enqueue(1, b=(3,)[0])
        before = [result.status, result.args, result.kwargs, result.backend, result.attempts]
        assert result.enqueued_at is not None and result.started_at is None
        end(result)
        assert result.enqueued_at <= result.started_at <= result.last_attempted_at <= result.finished_at
        same = add.get_result(result.id)
        assert same.task.func is add.func
        value = same.return_value
        answer = [before, result.status, value["sum"], result.attempts, value["pid"], result.errors]
        """
    )
    assert answer[:4] == [["READY", [1], {"b": 3}, "default", 0], "SUCCESSFUL", 4, 1]
    assert answer[5] == []
    assert answer[4] != os.getpid()
    assert (served.folder / "signals.txt").read_text() == "started add RUNNING 1\nfinished add SUCCESSFUL 1\n"


def test_async_programs_and_async_tasks(served: Site) -> None:
    answer = served.run(
        """
        async def main():
            result = await aadd.aenqueue(20, 22)
            while not result.is_finished:
                await asyncio.sleep(0.01)
                await result.arefresh()
            return (await aadd.aget_result(result.id)).return_value
        answer = asyncio.run(main())
        """
    )
    assert answer == 42


def test_context_queue_priority_and_run_after(served: Site) -> None:
    answer = served.run(
        """
        from datetime import timedelta
        from django.utils import timezone
        from semtask import Client

        result = end(with_context.enqueue("text"))
        later = add.using(run_after=timezone.now() + timedelta(hours=1), queue_name="mail", priority=-5).enqueue(1)
        job, waiting = (Client().get_job(one.id) for one in (result, later))
        answer = [
            result.return_value == ["text", 1, result.id, ["text"]],
            [job.queue, job.priority, job.job_type, job.max_attempts, job.timeout_ms],
            [waiting.queue, waiting.priority, waiting.state],
            3590_000 < waiting.run_at - waiting.created_at <= 3600_000,
            add.get_result(later.id).status,
        ]
        """
    )
    assert answer == [
        True,
        ["mail", 7, "shop.tasks.with_context", 2, 60_000],
        ["mail", -5, "SCHEDULED"],
        True,
        "READY",
    ]


def test_failures_have_their_exception_and_traceback(served: Site) -> None:
    answer = served.run(
        """
        from semtask import Client
        raised = fails.enqueue("lookup")
        while not raised.errors:  # after the first attempt of two
            time.sleep(0.01)
            raised.refresh()
        answer = [[raised.status, raised.attempts]]
        end(raised)
        try:
            raised.return_value
        except ValueError as error:
            answer.append(str(error))
        [error] = raised.errors
        assert error.exception_class is LookupError
        answer += [raised.status, raised.attempts, error.traceback]
        for how in ("object", "crash"):
            [error] = end(fails.enqueue(how)).errors
            answer.append([error.exception_class_path, error.traceback])
        """
    )
    assert answer[0] == ["READY", 1]
    assert answer[1:4] == ["Task failed", "FAILED", 2]
    assert 'raise LookupError("not here")' in answer[4]
    assert answer[5][0] == "builtins.TypeError"
    assert "Unsupported type" in answer[5][1]
    assert answer[6][0] == "semtask.sdk.failures.JobFailed" or answer[6][0].endswith("WorkerCrash")
    signals = (served.folder / "signals.txt").read_text().splitlines()
    assert signals[:4] == [
        "started fails RUNNING 1",
        "started fails RUNNING 2",
        "finished fails FAILED 2",
        "started fails RUNNING 1",
    ]


def test_the_database_is_used_over_many_jobs(served: Site) -> None:
    assert served.run("answer = [end(insert.enqueue(name)).return_value for name in 'abc']") == [1, 1, 1]


def test_djangos_own_rules_hold(served: Site) -> None:
    answer = served.run(
        """
        from datetime import datetime
        answer = []
        for wrong in (
            lambda: add.using(queue_name="unknown"),
            lambda: add.using(priority=101),
            lambda: add.using(run_after=datetime(2030, 1, 1)),
            lambda: add.enqueue(object()),
            lambda: add.get_result("no-id"),
            lambda: add.get_result("01a20785-1766-7443-a093-3674216bd693"),
            lambda: with_context.get_result(add.enqueue(1).id),
        ):
            try:
                wrong()
            except Exception as error:
                answer.append(type(error).__name__.removesuffix("Error"))
        """
    )
    no_result = "TaskResultDoesNotExist"
    assert answer == ["InvalidTask"] * 3 + ["Type", no_result, no_result, "TaskResultMismatch"]


def test_a_worker_runs_nothing_but_what_it_found_itself(served: Site) -> None:
    served.write("shop/other.py", "from FLAVOUR import task\n\n@task\ndef hidden():\n    return 1\n")
    answer = served.run(
        """
        from semtask import Client
        from shop.other import hidden
        client = Client()
        named = client.enqueue("os.system", {"args": ["touch pwned"], "kwargs": {}, "backend": "default"},
                               execution_mode="IN_PROCESS")
        jobs = [hidden.enqueue().id, named.job_id]
        end(add.enqueue(1))  # the worker has looked for work
        answer = [[job.state, job.waiting.reason] for job in map(client.get_job, jobs)]
        command = client.enqueue("make", {"command": "true"})
        for job_id in (named.job_id, command.job_id):
            try:
                default_task_backend.get_result(job_id)
            except Exception as error:
                answer.append(type(error).__name__)
        """
    )
    assert answer == [["QUEUED", "no_app"]] * 2 + ["TaskResultDoesNotExist"] * 2
    assert not (served.folder / "pwned").exists()


def test_wrong_options_are_refused_with_their_name(site: Site) -> None:
    for options, text in (
        ('{"retires": 3},', "OPTIONS has no 'retires'"),
        ('{"queue": "x"},', "OPTIONS has no 'queue'"),
        ('{"timeout": -1},', "timeout must be seconds"),
    ):
        site.write("mysite/settings.py", SETTINGS.replace("OPTIONS,", options))
        last = site.run("", code=1)
        assert "ImproperlyConfigured: TASKS['default']: " in last
        assert text in last


def test_a_worker_without_settings_says_what_to_do(site: Site) -> None:
    daemon = PrivateDaemon(site.home)
    try:
        daemon.start()
        with pytest.raises(AppFailed, match="as it inherits no DJANGO_SETTINGS_MODULE; register a module of the site"):
            daemon.serve(site.app("semtask.contrib.django:app"))
    finally:
        daemon.stop(at_once=True)


def test_the_inline_engine_runs_djangos_tasks(site: Site) -> None:
    answer = site.run(
        """
        import tempfile
        from pathlib import Path
        from semtask.testing import inline
        with tempfile.TemporaryDirectory() as folder, inline(Path(folder)) as semantica:
            result = add.enqueue(40)
            semantica.assert_enqueued("shop.tasks.add", args=[40], count=1)
            semantica.run_pending(check=True)
            result.refresh()
            answer = [result.status, result.return_value["sum"]]
        """
    )
    assert answer == ["SUCCESSFUL", 42]
