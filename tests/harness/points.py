"""The steps at which something can die, by name, and how a test build is made to die at one of them.

A step is a function of the daemon, the launcher, a shim or a worker; its kill points are the moments before and after
it, as far as they differ from those of another step. Nothing of this is in the shipped code: a test build (build.py)
wraps the functions that STEPS names. At each point a process tries to take the file `armed/<point>` of the plan's
folder. Who gets it kills its victim: itself, or the daemon.

Standard library only: launchers and shims import it, too.
"""

from __future__ import annotations

import functools
import importlib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

ENV_PLAN = "SEMTASK_TEST_PLAN"

Process = Literal["daemon", "launcher", "shim", "worker"]
Time = Literal["before", "after"]
Arguments = Sequence[Any]
Label = Callable[[Arguments, Any], str | None]
BOTH: tuple[Time, ...] = ("before", "after")
BEFORE: tuple[Time, ...] = ("before",)
AFTER: tuple[Time, ...] = ("after",)

OURS = ("command", "worker")  # whose attempt folder or shim it is


class Step(NamedTuple):
    """`target` is module:function. `label` tells kinds of the step apart, which `labels` lists; None is no step.

    `scene` names the load that reaches it (see scenes.py).
    """

    process: Process
    name: str
    target: str
    scene: str
    times: tuple[Time, ...] = BOTH
    labels: tuple[str, ...] = ("",)
    label: Label | None = None

    def points(self) -> Iterator[str]:
        for label in self.labels:
            for time in self.times:
                yield self.point(label, time)

    def point(self, label: str, time: Time) -> str:
        return ".".join(part for part in (self.process, self.name, label, time) if part)


def _of_folder(args: Arguments, _result: Any) -> str:
    return "worker" if os.path.basename(args[0].path).startswith("worker-") else "command"


def _of_shim_end(args: Arguments, _result: Any) -> str:
    return _of_folder((args[0].folder,), None)


def _of_text(first: int, names: Mapping[str, str]) -> Label:
    """By the argument of this number, a constant of the protocol."""

    def label(args: Arguments, _result: Any) -> str | None:
        value = args[first]
        return names.get(value.decode() if isinstance(value, bytes) else value)

    return label


def _of_type(first: int) -> Label:
    def label(args: Arguments, _result: Any) -> str:
        value = args[first]
        return type(value[0] if isinstance(value, (list, tuple)) else value).__name__

    return label


def _of_received(_args: Arguments, result: Any) -> str | None:
    return type(result[0]).__name__ if result else None


def _if_true(_args: Arguments, result: Any) -> str | None:
    return "" if result else None


def _of_body(args: Arguments, _result: Any) -> str | None:
    return "" if b"dev.enqueue" in args[1].body else None


REQUESTS = {"S": "spawn", "W": "worker", "T": "settle"}
ANSWERS = {"R": "ready", "s": "spawned", "t": "settled", "o": "orphans"}

STEPS: tuple[Step, ...] = (
    # --- the daemon: start and recovery ---
    Step("daemon", "create_database", "semtask.store.sqlite_file:SqliteFile._create", "restart"),
    Step("daemon", "migrate", "semtask.store.sqlite_file:migrate", "restart"),
    Step("daemon", "take_epoch", "semtask.store.sqlite_file:SqliteFile.open", "restart", AFTER),
    Step("daemon", "empty_trash", "semtask.executors.attempts_dir:AttemptsDir.empty_trash", "restart"),
    Step("daemon", "start_launcher", "semtask.executors.spawner:Spawner.start", "restart", AFTER),
    Step("daemon", "judge", "semtask.executors.former_attempts:FormerAttempts.judge", "restart"),
    Step("daemon", "judge_worker", "semtask.workers.former:FormerWorkers._end", "restart"),
    Step("daemon", "recover", "semtask.engine.lifecycle:Engine.recover", "restart", AFTER),
    Step("daemon", "open_sockets", "semtask.api.http:RpcServer.start", "restart", AFTER),
    Step("daemon", "begin", "semtask.engine.lifecycle:Engine.start", "restart", AFTER),
    # --- the daemon: an attempt ---
    Step("daemon", "answer", "semtask.api.http:RpcServer._rpc", "command", BOTH, label=_of_body),
    Step("daemon", "make_folder", "semtask.launch.folder:AttemptFolder.create", "both", BOTH, OURS, label=_of_folder),
    Step(
        "daemon",
        "ask_launcher",
        "semtask.executors.launcher_process:LauncherProcess.send",
        "lost",
        BOTH,
        tuple(REQUESTS.values()),
        label=_of_text(1, REQUESTS),
    ),
    Step(
        "daemon",
        "hear_launcher",
        "semtask.executors.launcher_process:LauncherProcess._take",
        "lost",
        BOTH,
        tuple(ANSWERS.values()),
        label=_of_text(1, ANSWERS),
    ),
    Step("daemon", "see_end", "semtask.executors.shim_end:ShimEnd._seen", "both", BOTH, OURS, label=_of_shim_end),
    Step("daemon", "see_loss", "semtask.executors.shim_end:ShimEnd._lost", "lost", BOTH, OURS, label=_of_shim_end),
    Step("daemon", "poison", "semtask.launch.folder:AttemptFolder.poison", "lost", BOTH, OURS, label=_of_folder),
    Step("daemon", "settle", "semtask.engine.attempt:Attempts.settle", "command"),
    Step("daemon", "remove_folder", "semtask.launch.folder:AttemptFolder.remove", "both", BOTH, OURS, _of_folder),
    Step("daemon", "ask_to_stop", "semtask.launch.folder:AttemptFolder.ask_to_stop", "stop", BOTH, OURS, _of_folder),
    Step("daemon", "wake_shim", "semtask.executors.spawner:SpawnedShim.terminate", "stop", AFTER),
    # --- the daemon: workers ---
    Step("daemon", "hear_hello", "semtask.workers.worker:Worker.on_hello", "restart"),
    Step("daemon", "send_run", "semtask.workers.link:WorkerLink.run", "task"),
    Step(
        "daemon",
        "send_frame",
        "semtask.workers.link:WorkerLink.send",
        "tasks",
        AFTER,
        ("Setup", "Stop", "Recalled"),
        _of_type(1),
    ),
    Step(
        "daemon",
        "hear_frame",
        "semtask.workers.worker:Worker.on_frames",
        "tasks",
        BOTH,
        ("Ended", "Progress", "Blocked"),
        _of_type(1),
    ),
    Step("daemon", "take_tokens", "semtask.workers.link:WorkerLink.take_tokens", "tasks", AFTER, ("",), _if_true),
    Step("daemon", "kill_worker", "semtask.workers.process:WorkerProcess.kill", "tasks", AFTER),
    Step("daemon", "bury_worker", "semtask.workers.process:WorkerProcess.close", "tasks"),
    Step("daemon", "settle_tasks", "semtask.engine.task_attempts:TaskAttempts.ended", "task"),
    # --- the launcher ---
    Step("launcher", "rehearse", "semtask.launch.launcher:_Launcher.rehearse", "restart"),
    Step("launcher", "serve", "semtask.launch.launcher:_Launcher.serve", "restart", BEFORE),
    Step("launcher", "receive", "semtask.launch.launcher:_Launcher._receive", "command"),
    Step("launcher", "fork", "semtask.launch.launcher:_Launcher._spawn", "command"),
    Step(
        "launcher",
        "tell",
        "semtask.launch.launcher:_Launcher._tell",
        "lost",
        BOTH,
        tuple(ANSWERS.values()),
        label=_of_text(1, ANSWERS),
    ),
    Step("launcher", "end_orphans", "semtask.launch.launcher:_Launcher._end_orphans", "lost"),
    Step("launcher", "settle", "semtask.launch.launcher:_Launcher._answer_settling", "lost"),
    Step("launcher", "leave", "semtask.launch.launcher:_Launcher._leave", "restart"),
    # --- a shim ---
    Step("shim", "run", "semtask.launch.shim:run", "both", BOTH, OURS),
    Step("shim", "lock", "semtask.launch.shim:_take", "both", AFTER, OURS),
    Step("shim", "note_start", "semtask.launch.shim:_Attempt._start", "both", BEFORE, OURS),
    Step("shim", "start_command", "semtask.launch.command:start", "both", BOTH, OURS),
    Step("shim", "announce", "semtask.launch.shim:_Attempt._announce", "both", BOTH, OURS),
    Step("shim", "supervise", "semtask.launch.shim:_Attempt._supervise", "both", BOTH, OURS),
    Step("shim", "begin_stop", "semtask.launch.shim:_Attempt._begin_stop", "stop", BOTH, OURS),
    Step("shim", "end_tree", "semtask.launch.shim:_Attempt._end_tree", "both", AFTER, OURS),
    Step("shim", "write_record", "semtask.launch.shim:_Attempt._write", "both", BOTH, OURS),
    # --- a worker ---
    Step(
        "worker",
        "send_frame",
        "semtask.worker.channel:Channel.send",
        "tasks",
        BOTH,
        ("Hello", "Ended", "Progress", "Blocked"),
        _of_type(1),
    ),
    Step(
        "worker",
        "hear_frame",
        "semtask.worker.channel:Channel._take",
        "tasks",
        AFTER,
        ("Run", "Stop", "Recalled"),
        _of_received,
    ),
    Step("worker", "take_token", "semtask.worker.channel:Channel.take_token", "task", AFTER, ("",), _if_true),
    Step("worker", "run_sync", "semtask.worker.sync_runner:SyncRunner._run_one", "task"),
    Step("worker", "begin_async", "semtask.worker.async_runner:AsyncRunner._begin", "task"),
    Step("worker", "end_async", "semtask.worker.async_runner:AsyncRunner._ended", "task", BEFORE),
    Step("worker", "look_for_leftovers", "semtask.worker.hygiene:Hygiene.leftovers", "task"),
    Step("worker", "rest", "semtask.worker.sync_runner:SyncRunner._rest", "tasks", BEFORE),
)

# What is no function: a worker has begun to import its app (see work.py).
OTHERS: Mapping[str, str] = {"worker.import.before": "task"}

# Every kind of request to the writer is a step of its own: what is done before its tick commits, what is committed and
# not yet told to anybody, and what the loop knows. The values are the scenes that reach them.
TICKS: Mapping[str, str] = {
    "insert": "command",
    "claim": "command",
    "claim_tasks": "task",
    "finish": "command",
    "finish_many": "task",
    "record_process": "command",
    "record_progress": "task",
    "record_kill_failed": "stubborn",
    "stop": "stop",
    "promote": "waiting",
    "expire": "waiting",
    "configure_queue": "waiting",
    "_bring_back_step": "waiting",
    "count": "restart",
    "quarantine_running": "damaged",
    "_purge_step": "upkeep",
    "purge_subjects": "upkeep",
    "compact": "upkeep",
}
TICK_TIMES = ("applied", "committed", "told")


def scenes() -> dict[str, str]:
    """Every kill point, and the scene that reaches it."""
    found = {point: step.scene for step in STEPS for point in step.points()}
    found |= OTHERS
    for kind, scene in TICKS.items():
        found |= {f"daemon.tick.{kind}.{time}": scene for time in TICK_TIMES}
    return found


class Plan:
    """A folder that tells the processes of a test build at which points to die. Its methods serve both sides."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    # --- the test ---

    def prepare(self) -> None:
        for name in ("armed", "met"):
            os.makedirs(f"{self.folder}/{name}", exist_ok=True)

    def arm(self, point: str, victim: str = "self", then: str = "") -> None:
        """`then` is a point at which the process that comes there after this one's victim is dead kills itself."""
        with open(f"{self.folder}/armed.tmp", "w", encoding="ascii") as file:
            file.write(f"{victim} {then}")
        os.rename(f"{self.folder}/armed.tmp", f"{self.folder}/armed/{point}")

    def disarm(self) -> None:
        """Forget what is armed, and what was met."""
        for folder in (f"{self.folder}/armed", f"{self.folder}/met"):
            for name in os.listdir(folder):
                with suppress(FileNotFoundError):
                    os.unlink(f"{folder}/{name}")

    def met(self, point: str) -> int:
        """How often somebody was killed there."""
        return sum(name.rpartition(".")[0] == point for name in os.listdir(f"{self.folder}/met"))

    # --- the test build ---

    def register_daemon(self) -> None:
        with open(f"{self.folder}/daemon.tmp", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
        os.rename(f"{self.folder}/daemon.tmp", f"{self.folder}/daemon")

    def reach(self, point: str) -> None:
        taken = f"{self.folder}/met/{point}.{os.getpid()}"
        try:
            os.rename(f"{self.folder}/armed/{point}", taken)
        except FileNotFoundError:
            return
        with open(taken, encoding="ascii") as file:
            victim, _, then = file.read().partition(" ")
        if then:
            self.arm(then)
        if victim == "self":
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()  # in another thread it may take a moment
        self._kill_daemon()

    def _kill_daemon(self) -> None:
        """The daemon is dead when this returns."""
        with open(f"{self.folder}/daemon", encoding="ascii") as file:
            pid = int(file.read())
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"tests.harness.build" not in file.read():
                    return
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 10)
        except (ProcessLookupError, FileNotFoundError):
            return
        finally:
            os.close(pidfd)


def install(process: Process, plan: Plan) -> None:
    """Wrap the functions of this kind of process in this process."""
    for step in STEPS:
        if step.process == process:
            _wrap(step, plan)


def _wrap(step: Step, plan: Plan) -> None:
    module_name, _, path = step.target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function = getattr(owner, name)
    label = step.label or _no_label

    def reach(time: Time, args: Arguments, result: Any) -> None:
        if time in step.times:
            kind = label(args, result)
            if kind is not None:
                plan.reach(step.point(kind, time))

    if function.__code__.co_flags & 0x80:  # CO_COROUTINE; inspect would be much to import here

        @functools.wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            reach("before", args, None)
            result = await function(*args, **kwargs)
            reach("after", args, result)
            return result

    else:

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            reach("before", args, None)
            result = function(*args, **kwargs)
            reach("after", args, result)
            return result

    setattr(owner, name, wrapped)


def _no_label(_args: Arguments, _result: Any) -> str:
    return ""


# --- shims ---

# What a shim asks of the kernel; not what it only looks at.
_CALLS = (
    *("open", "write", "close", "rename", "dup2", "umask", "chdir", "posix_spawn", "wait4", "pidfd_open"),
    *("kill", "fstat", "access", "splice"),
)


def install_in_shims(plan: Plan) -> None:
    """In a launcher: wrap the functions of its shims. What it runs itself, to rehearse, is none."""
    from semtask.launch import shim

    launcher = os.getpid()
    original = shim.run

    def run(task: Any) -> int:
        if os.getpid() == launcher:
            return original(task)
        kind = "worker" if task.passed else "command"
        for step in STEPS:
            if step.process == "shim" and step.name != "run":
                _wrap(step._replace(label=lambda _args, _result: kind), plan)
        calls = _Calls(plan, f"shim.{kind}")
        plan.reach(f"shim.run.{kind}.before")
        try:
            return original(task)
        finally:
            calls.end()
            if sys.exc_info()[0] is None:
                plan.reach(f"shim.run.{kind}.after")

    shim.run = run


class _Calls:
    """Counts what a shim asks of the kernel. Each call is a kill point, `<name>.call.<number>`, before it is done."""

    def __init__(self, plan: Plan, name: str) -> None:
        self._plan = plan
        self._name = name
        self._count = 0
        self._nested = False
        for call in _CALLS:
            setattr(os, call, self._counted(getattr(os, call)))
        signal.pidfd_send_signal = self._counted(signal.pidfd_send_signal)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._nested:
                self._nested = True
                self._count += 1
                self._plan.reach(f"{self._name}.call.{self._count}")
                self._nested = False
            return function(*args, **kwargs)

        return call

    def end(self) -> None:
        """Tell how many there were."""
        self._nested = True
        temporary = f"{self._plan.folder}/calls.{os.getpid()}"
        with open(temporary, "w", encoding="ascii") as file:
            file.write(str(self._count))
        os.rename(temporary, f"{self._plan.folder}/calls.{self._name}")
