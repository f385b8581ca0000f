"""The executor of tasks with a real launcher, real shims and real workers, and a small engine that listens."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.base import AppStatus, TaskEnd
from semtask.executors.output import LogFiles
from semtask.executors.spawner import Spawner
from semtask.model.app import App, AppState
from semtask.model.identifiers import JobIds
from semtask.model.job import ClaimFacts, ExecutionMode, Job, OnInterrupt, ProgressNote, Taker
from semtask.model.state import State
from semtask.workers.in_process import InProcessExecutor
from semtask.workers.process import WorkerSettings
from tests.executors.rig import PATH, until

SCRIPTED = Path(__file__).with_name("scripted_worker.py")
REPOSITORY = Path(__file__).parents[2]

# An app without the SDK, with the tasks that most tests need.
APP = """
import asyncio, ctypes, os, signal, subprocess, sys, time
from semtask.tasks.registry import Registry, TaskDefinition

class App:
    def __init__(self):
        self.registry = Registry()
    def task(self, function):
        is_async = asyncio.iscoroutinefunction(function)
        self.registry.add(TaskDefinition(function.__name__, function, is_async))
        return function

app = App()

"""
SYNC = """
@app.task
def noop(n: int = 0) -> int:
    return n
@app.task
def pid() -> int:
    return os.getpid()
@app.task
def sleep(seconds: float) -> str:
    open("runs", "w").close()
    time.sleep(seconds)
    return "slept"
@app.task
def stuck(seconds: float) -> None:
    "Holds the GIL."
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))
@app.task
def loop() -> None:
    while True:
        pass
@app.task
def fail(text: str) -> None:
    raise ValueError(text)
@app.task
def crash(number: int) -> None:
    os.kill(os.getpid(), number)
@app.task
def segfault() -> None:
    ctypes.string_at(0)
@app.task
def leave(code: int) -> None:
    os._exit(code)
@app.task
def child() -> int:
    return subprocess.Popen(["sleep", "300"], start_new_session=True).pid
"""
ASYNC = """
@app.task
async def anoop(n: int = 0) -> int:
    return n
@app.task
async def asleep(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"
@app.task
async def acrash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
@app.task
async def astuck(seconds: float) -> None:
    open("runs", "w").close()
    time.sleep(seconds)
@app.task
async def apid() -> int:
    await asyncio.sleep(0.01)
    return os.getpid()
"""


def new_id() -> str:
    return _ids.new()


_ids = JobIds(lambda: time.time_ns() // 1_000_000, secrets.token_bytes)


class TaskRig:
    """`ends` are the outcomes by job_id; `batches` counts how often there were some."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        self.attempts = AttemptsDir(home / "attempts")
        self.logs = LogFiles(home / "logs" / "jobs")
        self.counters: Counter[str] = Counter()
        self.spawner = Spawner(self.attempts, lambda number: self.counters.update({"orphans": number}))
        self.ends: dict[str, TaskEnd] = {}
        self.batches = 0
        self.told: dict[str, list[AppStatus]] = {}
        self.notes: list[ProgressNote] = []
        self.blocked: list[tuple[str, Sequence[str]]] = []
        self.kill_failed: list[str] = []
        self.rooms = 0
        env = {"PATH": PATH, "PYTHONPATH": str(REPOSITORY), "HOME": str(home)}
        self.settings = WorkerSettings(
            **{
                "env": env,
                "umask": 0o22,
                "artifacts_dir": str(home / "artifacts"),
                "version": "1.2.3",
                **settings,
            }
        )

    def make_executor(self) -> None:
        self.executor = InProcessExecutor(
            self.attempts,
            self.spawner,
            self.logs,
            self,
            lambda name, number: self.counters.update({name: number}),
            settings=self.settings,
            daemon_epoch=7,
            new_id=new_id,
            now_ms=lambda: time.time_ns() // 1_000_000,
        )

    # --- what it is told ---

    def tasks_ended(self, ends: Sequence[TaskEnd]) -> None:
        self.batches += 1
        for end in ends:
            assert end.job.job_id not in self.ends, "an end is told once"
            self.ends[end.job.job_id] = end

    def task_progress(self, notes: Sequence[ProgressNote]) -> None:
        self.notes += notes

    def task_blocked(self, job_id: str, claim_no: int, on: Sequence[str]) -> None:
        self.blocked.append((job_id, on))

    def task_kill_failed(self, job_id: str, claim_no: int) -> None:
        self.kill_failed.append(job_id)

    def room_changed(self) -> None:
        self.rooms += 1

    def app_changed(self, status: AppStatus) -> None:
        self.told.setdefault(status.app.name, []).append(status)

    # --- apps ---

    def write_app(self, code: str = SYNC, *, name: str = "app", python: str = sys.executable) -> App:
        folder = self.home / f"project-{name}"
        folder.mkdir(exist_ok=True)
        (folder / "jobs.py").write_text(APP + code)
        return App(name=name, module="jobs:app", directory=str(folder), python=python)

    def scripted(self, behaviour: str, *, name: str = "app") -> App:
        """An app whose "interpreter" is the scripted worker."""
        program = self.home / "scripted"
        program.write_text(f"#!{sys.executable}\n" + SCRIPTED.read_text())
        program.chmod(0o755)
        return App(name=name, module=behaviour, directory=str(self.home), python=str(program))

    async def use(self, *apps: App, ready: bool = True) -> None:
        self.executor.configure(apps)
        assert await self.executor.settled([app.name for app in apps], 30)
        if ready:
            for status in self.executor.statuses():
                assert status.state is AppState.READY, status.error

    def status(self, name: str = "app") -> AppStatus:
        return next(status for status in self.executor.statuses() if status.app.name == name)

    # --- jobs ---

    def job(self, task: str, /, *, queue: str = "default", claim_no: int = 1, **arguments: Any) -> Job:
        return Job(
            seq=1,
            job_id=new_id(),
            queue=queue,
            job_type=task,
            execution_mode=ExecutionMode.IN_PROCESS,
            state=State.RUNNING,
            payload=json.dumps(arguments),
            created_at=0,
            on_interrupt=OnInterrupt.REQUEUE,
            content_hash=b"",
            claim_no=claim_no,
        )

    def taker_of(self, task: str, *, limited: Collection[str] = ()) -> Taker | None:
        return next((t for t in self.executor.takers(8, limited) if task in t.tasks and not t.ahead), None)

    async def taker(self, task: str) -> Taker:
        """What could take a job of this task, when there is something; as the engine does, it says what it lacks."""
        deadline = time.monotonic() + 20
        while (found := self.taker_of(task)) is None:
            assert time.monotonic() < deadline, f"no worker for {task}: {self.executor.workers()}"
            self.executor.shortage({task})
            await asyncio.sleep(0.01)
        return found

    async def start(self, *jobs: Job) -> ClaimFacts:
        """Hand jobs to one worker, which may have room for less of them."""
        facts = (await self.taker(jobs[0].job_type)).facts
        assert facts.worker is not None
        self.executor.start(facts.worker, jobs)
        return facts

    async def end(self, job: Job, timeout: float = 20.0) -> TaskEnd:
        await until(lambda: job.job_id in self.ends, f"the end of {job.job_type}", timeout)
        return self.ends[job.job_id]

    async def run(self, task: str, /, **arguments: Any) -> TaskEnd:
        job = self.job(task, **arguments)
        await self.start(job)
        return await self.end(job)

    async def runs(self, *jobs: Job) -> ClaimFacts:
        """Start jobs in one worker, and wait until the code of the first one runs, which says so in a file."""
        facts = await self.start(*jobs)
        project = next(status.app.directory for status in self.executor.statuses())
        await until(Path(project, "runs").exists, "the code of the job")
        return facts

    # --- looking ---

    def log_of(self, job: Job) -> str:
        path = self.logs.path(job.job_id, job.claim_no)
        return path.read_text() if path.exists() else ""

    def folders(self) -> list[str]:
        return [name for name in os.listdir(self.attempts.path) if name.startswith("worker-")]

    def pids(self, *states: str) -> list[int]:
        return [w.pid for w in self.executor.workers() if w.pid and (not states or w.state in states)]


@asynccontextmanager
async def task_rig(home: Path, **settings: Any) -> AsyncIterator[TaskRig]:
    home.mkdir(exist_ok=True)
    made = TaskRig(home, **settings)
    await made.spawner.start()
    try:
        made.make_executor()
        try:
            yield made
        finally:
            await made.executor.close()
        assert made.folders() == []
    finally:
        await made.spawner.close()
        made.logs.close()
