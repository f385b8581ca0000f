"""One side of a comparison, run by its interpreter: python -m benchmarks.base.measure FIGURE...

Prints one JSON object of figures by name. It uses nothing of semtask but what users can use, so that it measures
other commits as well.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers import probe

ROOT = Path(__file__).resolve().parents[2]
DRAINED = 20_000
STARTS = 300
COMMANDS = 1000
CALLS = 20
LIMIT_S = 180.0
SEMTASK = [sys.executable, "-m", "semtask"]

_APP = """
import os, sys
sys.path.insert(0, {root!r})
os.environ[{variable!r}] = {marks!r}
from benchmarks.task_app import app
"""


class Engine:
    """A daemon of this side in a home of its own, which serves the app of the benchmarks."""

    def __init__(self, folder: Path) -> None:
        from semtask import Client

        self.marks = folder / "marks"
        self.marks.mkdir()
        module = _APP.format(root=str(ROOT), variable=probe.FOLDER, marks=str(self.marks))
        (folder / "measured.py").write_text(module)
        self.env = {**os.environ, "SEMANTICA_HOME": str(folder / "home"), probe.FOLDER: str(self.marks)}
        self.command("up", "--app", "measured:app", cwd=folder)
        self.pid = int(json.loads(self.command("status", "--json"))["pid"])
        self.client = Client(folder / "home", autostart=False)
        self._done = 0

    def command(self, *argv: str, cwd: Path | None = None) -> str:
        run = subprocess.run([*SEMTASK, *argv], env=self.env, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True)
        return run.stdout

    def produce(self, kind: str, count: int) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.task_producer", kind, str(count)]
        output = subprocess.run(command, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, check=True).stdout
        figures: dict[str, float] = json.loads(output)
        return figures

    def wait_done(self, count: int) -> float:
        """When the daemon said that so many more jobs are DONE; jobs of earlier calls do not count."""
        self._done += count
        end = time.monotonic() + LIMIT_S
        while self.client.stats().done_jobs < self._done:
            if time.monotonic() > end:
                raise TimeoutError(f"not within {LIMIT_S:.0f} s: {count} jobs are DONE")
            time.sleep(0.01)
        return time.monotonic()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def engine() -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="semtask-bench-") as name:
        run = Engine(Path(name))
        try:
            yield run
        finally:
            run.client.close()
            run.command("down", "-q", "--now")


def drain(kind: str) -> dict[str, float]:
    """Everything is queued before the queue is resumed; from there until the last job is DONE."""
    with engine() as run:
        if kind != "batches":
            run.client.configure_queue("default", concurrency=100)  # an async job holds a slot of its own
        run.client.pause_queue("default")
        run.produce(kind, DRAINED)
        queued = run.client.stats().db_size_bytes
        cpu, began = run.cpu_s(), time.monotonic()
        run.client.resume_queue("default")
        seconds = run.wait_done(DRAINED) - began
        name = "async" if kind != "batches" else "sync"
        figures = {
            f"drain of {name} tasks, jobs/s": DRAINED / seconds,
            f"daemon CPU of {name} tasks, us/job": (run.cpu_s() - cpu) / DRAINED * 1e6,
        }
        if name == "sync":
            figures["a queued job in the database, bytes"] = queued / DRAINED
            figures["a finished job in the database, bytes"] = run.client.stats().db_size_bytes / DRAINED
        return figures


def accept() -> dict[str, float]:
    """How fast one client is answered; nothing runs."""
    job = {"job_type": "benchmarks.task_app:noop", "queue": "paused", "execution_mode": "IN_PROCESS", "payload": {}}
    with engine() as run:
        run.client.pause_queue("paused")
        figures = {}
        for size in (1000, 100):
            calls = [_seconds(lambda size=size: run.client.enqueue_many([job] * size)) for _ in range(CALLS)]  # type: ignore[misc]
            figures[f"enqueue_many by {size}, jobs/s"] = size / statistics.median(calls)
        run.client.pause_queue("default")
        figures["enqueue one by one, jobs/s"] = 1 / run.produce("singles", 1000)["call_s"]
        return figures


def together() -> dict[str, float]:
    """One producer while the workers run, and the start of a task on an idle engine."""
    with engine() as run:
        run.client.pause_queue("unused")  # where producers connect
        run.client.enqueue("benchmarks.task_app:noop", {})
        run.wait_done(1)
        began = run.produce("batches", DRAINED)["began"]
        rate = DRAINED / (run.wait_done(DRAINED) - began)
        run.produce("stamps", STARTS)
        run.wait_done(STARTS)
        starts = [(now - sent) * 1000 for sent, now in probe.read_marks(run.marks, "starts")]
    return {"producer and workers, jobs/s": rate, "start of an idle task p50, ms": statistics.median(starts)}


def commands() -> dict[str, float]:
    with engine() as run:
        job = {"job_type": "true", "execution_mode": "SUBPROCESS", "payload": {"command": "true"}}
        run.client.pause_queue("default")
        run.client.enqueue_many([job] * COMMANDS)
        cpu, began = run.cpu_s(), time.monotonic()
        run.client.resume_queue("default")
        seconds = run.wait_done(COMMANDS) - began
        used = (run.cpu_s() - cpu) / COMMANDS * 1e6
    return {"commands, jobs/s": COMMANDS / seconds, "daemon CPU of commands, us/job": used}


def command_line() -> dict[str, float]:
    with engine() as run:
        memory = next(
            int(line.split()[1])
            for line in Path(f"/proc/{run.pid}/status").read_text().splitlines()
            if line.startswith("VmRSS:")
        )
        figures = {"daemon idle, RSS in MB": memory / 1024}
        for name, argv in (
            ("version", ("version",)),
            ("enqueue", ("enqueue", "-q", "benchmarks.task_app:stamp", "--arg", "sent=1")),
        ):
            calls = [_seconds(lambda argv=argv: run.command(*argv)) for _ in range(CALLS)]  # type: ignore[misc]
            figures[f"semtask {name}, ms"] = statistics.median(calls) * 1000
        return figures


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "drain": lambda: drain("batches"),
    "async": lambda: drain("async_batches"),
    "accept": accept,
    "together": together,
    "commands": commands,
    "command_line": command_line,
}


def main(names: list[str]) -> None:
    figures: dict[str, Any] = {}
    for name in names:
        figures |= PARTS[name]()
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
