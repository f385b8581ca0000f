"""The start after a kill -9, with a million jobs queued and 200 running, beside the start in an empty home.

python -m benchmarks.recovery [--queued 1000000] [--running 200] [--rounds 5]

From exec to the first 200 of /readyz, and to the first job that runs again. `at once`: the next daemon is started the
moment the former one is dead, while its shims still end what ran; `later`: when nothing of it is left.
"""

from __future__ import annotations

import argparse
import http.client
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.running import cpu_seconds, helpers_of
from semtask import Client
from semtask.config.loading import load
from semtask.host.app_list import add_app
from semtask.model.app import App

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 1.0
BATCH = 10_000
PATIENCE_S = 180.0
SLEEP_S = 3600


class Home:
    """A home whose daemon is killed and started again."""

    def __init__(self, slots: int) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="semtask-bench-"))
        # A home of the user too: nobody's settings are read.
        self._env = {
            **os.environ,
            "HOME": str(self.path),
            "SEMANTICA_HOME": str(self.path),
            "SEMANTICA_MAX_PROCESSES": str(slots),
            "SEMANTICA_CPU_THROTTLE_THRESHOLD": "101",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        self.client = Client(self.path, autostart=False)
        self.cpu_s = 0.0  # of the daemon, until it was ready
        self._daemon: subprocess.Popen[bytes] | None = None
        self._helpers: list[int] = []

    def start(self) -> float:
        """Seconds from exec to ready."""
        began = time.monotonic()
        command = [sys.executable, "-m", "semtask", "daemon"]
        self._daemon = subprocess.Popen(command, env=self._env, stderr=subprocess.DEVNULL)
        while not self._is_ready():
            if self._daemon.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self._daemon.returncode}")
            time.sleep(0.002)
        took = time.monotonic() - began
        self.cpu_s = cpu_seconds(self._daemon.pid)
        return took

    def kill(self) -> None:
        assert self._daemon is not None
        for pid in helpers_of(self._daemon.pid):
            with suppress(ProcessLookupError):
                self._helpers.append(os.pidfd_open(pid))
        self._daemon.kill()
        self._daemon.wait()

    def wait_helpers(self) -> None:
        """Until all that the killed daemon had started is gone."""
        for pidfd in self._helpers:
            select.select([pidfd], [], [])

    def forget_helpers(self) -> None:
        for pidfd in self._helpers:
            os.close(pidfd)
        self._helpers = []

    def add_app(self) -> None:
        app = App(name="measured", module="benchmarks.task_app:app", directory=str(ROOT), python=sys.executable)
        add_app(load(self._env), app)

    def close(self) -> None:
        self.client.close()
        if self._daemon is not None:
            for _ in range(2):
                self._daemon.send_signal(signal.SIGTERM)
            self._daemon.wait()
        shutil.rmtree(self.path)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self.path / "run" / "rpc.sock"))
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Round(NamedTuple):
    """In seconds from exec: ready, the first of the running jobs begun again, and all of them; the CPU until ready."""

    ready: float
    cpu: float
    first: float
    all: float


def measure(home: Home, running: list[str], *, later: bool) -> Round:
    """Kill the daemon and start it again; until all that ran runs again."""
    home.kill()
    if later:
        home.wait_helpers()
    at = time.time()
    ready = home.start()
    home.forget_helpers()
    starts: dict[str, float] = {}

    def begun() -> bool:
        for job_id in running:
            if job_id not in starts:
                job = home.client.get_job(job_id)
                if job.state != "RUNNING" or job.started_at is None or job.started_at < at * 1000:
                    return False
                starts[job_id] = job.started_at / 1000 - at
        return True

    until(begun, "what ran runs again")
    return Round(ready, home.cpu_s, min(starts.values()), max(starts.values()))


def prepare(home: Home, queued: int, running: int) -> list[str]:
    """The ids of the jobs that run, half of them commands and half of them async tasks; the others wait behind."""
    home.add_app()
    home.start()
    client = home.client
    client.configure_queue("default", concurrency=running)
    again = {"on_interrupt": "requeue"}
    command = {"job_type": "sleep", "payload": {"command": "sleep", "args": [str(SLEEP_S)]}, **again}
    nap = {"job_type": "benchmarks.task_app:sleep", "payload": {"seconds": SLEEP_S}, **again}
    nap["execution_mode"] = "IN_PROCESS"
    jobs = client.enqueue_many([command] * (running // 2) + [nap] * (running - running // 2))
    until(lambda: client.stats().running_jobs == running, f"{running} jobs run")
    waiting = {"job_type": "true", "payload": {"command": "/bin/true"}, "priority": -100}
    for first in range(0, queued, BATCH):
        client.enqueue_many([waiting] * min(BATCH, queued - first))
    return [job.job_id for job in jobs]


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queued", type=int, default=1_000_000)
    parser.add_argument("--running", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    empty, full = Home(given.running), Home(given.running)
    try:
        empty.start()
        running = prepare(full, given.queued, given.running)
        bare: list[float] = []
        bare_cpu: list[float] = []
        rounds: dict[str, list[Round]] = {"at once": [], "later": []}
        for _ in range(given.rounds):  # by turns, as the machine is not the same from minute to minute
            empty.kill()
            bare.append(empty.start())
            bare_cpu.append(empty.cpu_s)
            empty.forget_helpers()
            for name, some in rounds.items():
                some.append(measure(full, running, later=name == "later"))
        queued = full.client.stats().queued_jobs
    finally:
        empty.close()
        full.close()
    print(f"start of an empty home           ready {_span(bare)}, CPU {_span(bare_cpu)}")
    for name, some in rounds.items():
        ready = [one.ready for one in some]
        verdict = "reached" if statistics.median(ready) < LIMIT_S else "MISSED"
        print(f"recovery, {name:8} after kill -9  ready {_span(ready)}  (under {LIMIT_S * 1000:.0f} ms: {verdict})")
        print(f"  first job begun again {_span([one.first for one in some])}, all {_span([one.all for one in some])}")
        print(f"  CPU of the daemon until ready {_span([one.cpu for one in some])}")
    print(f"{queued} jobs queued, {given.running} running, {given.rounds} rounds; median (least-most)")


def _span(values: list[float]) -> str:
    ms = [1000 * value for value in values]
    return f"{statistics.median(ms):5.0f} ms ({min(ms):.0f}-{max(ms):.0f})"


if __name__ == "__main__":
    main()
