"""Measures one peer: two worker processes, no stored results, no-op jobs.

enqueue    jobs per second of one producer that does nothing else
drain      from the first to the last job that ran, of all jobs queued beforehand
sustained  from the first enqueue of one producer to the last job that ran, workers running beside it
start      from the enqueue to the first line of the function, on an idle machine
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.peers import probe
from benchmarks.peers.install import Unavailable, install, redis

ROOT = Path(__file__).resolve().parents[2]
STARTS = 500
ROUND_LIMIT_S = 120


@dataclass(frozen=True)
class Peer:
    """`worker` is the command after `python -m`; `count` jobs keep a round short on 2 cores."""

    name: str
    requirements: Sequence[str]
    worker: Sequence[str]
    count: int
    needs_redis: bool = True


_APPS = "benchmarks.peers.apps"
_REDIS = ("redis==8.1.0", "hiredis==3.5.0")
PEERS = [
    Peer(
        "taskiq",
        ("taskiq==0.13.0", "taskiq-redis==1.2.4", "uvloop==0.23.0", *_REDIS),
        ("taskiq", "worker", "-w", "2", "--log-level", "ERROR", f"{_APPS}.taskiq_app:broker"),
        20_000,
    ),
    Peer(
        "huey_redis",
        ("huey==3.5.4", *_REDIS),
        ("huey.bin.huey_consumer", f"{_APPS}.huey_redis_app.huey", "-w", "2", "-k", "process", "-q"),
        20_000,
    ),
    Peer(
        "dramatiq",
        ("dramatiq==2.2.1", *_REDIS),
        ("dramatiq", f"{_APPS}.dramatiq_app", "-p", "2", "-t", "8"),
        20_000,
    ),
    Peer(
        "huey_sqlite",
        ("huey==3.5.4",),
        ("huey.bin.huey_consumer", f"{_APPS}.huey_sqlite_app.huey", "-w", "2", "-k", "process", "-q"),
        10_000,
        needs_redis=False,
    ),
    Peer(
        "celery",
        ("celery==5.7.0", "packaging==26.3", *_REDIS),
        ("celery", "-A", f"{_APPS}.celery_app", "worker", "-c", "2", "-l", "ERROR"),
        5_000,
    ),
]


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds, jobs per second; the start latencies in ms over all starts of all rounds."""

    name: str
    count: int
    rounds: int
    enqueue: float
    drain: float
    sustained: float
    start_p50_ms: float
    start_p99_ms: float
    starts: int


def measure(peer: Peer, rounds: int, scale: float = 1.0) -> Figures:
    """Raises Unavailable."""
    count = max(100, int(peer.count * scale))
    enqueue, drain, sustained, starts = [], [], [], []
    for _ in range(rounds):
        with _running(peer) as run:
            enqueue.append(count / run.produce("noops", count)["seconds"])
            drain.append(run.drain(count))
            with run.workers():
                run.warm_up()
                began = run.produce("noops", count)["began"]
                sustained.append(count / (run.wait_ticks(count).last - began))
            with run.workers():
                run.warm_up()
                run.produce("stamps", max(20, int(STARTS * scale)))
                starts += [(now - sent) * 1000 for sent, now in probe.read_marks(run.marks, "starts")]
    return Figures(
        peer.name,
        count,
        rounds,
        statistics.median(enqueue),
        statistics.median(drain),
        statistics.median(sustained),
        statistics.median(starts),
        percentile(starts, 0.99),
        len(starts),
    )


def drain_once(name: str) -> float:
    """Jobs per second, for a comparison by turns. Raises Unavailable."""
    [peer] = [peer for peer in PEERS if peer.name == name]
    with _running(peer) as run:
        run.produce("noops", peer.count)
        return run.drain(peer.count)


@contextmanager
def _running(peer: Peer) -> Iterator[_Run]:
    python = install(*peer.requirements) / "bin" / "python"
    with redis() if peer.needs_redis else nullcontext("") as url, _Run(peer, python, url) as run:
        yield run


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


class _Run:
    """A folder, its marks, and the processes of one peer."""

    def __init__(self, peer: Peer, python: Path, redis_url: str) -> None:
        self._peer, self._python = peer, str(python)
        self._folder = Path(tempfile.mkdtemp(prefix="semtask-bench-"))
        self.marks = self._folder / "marks"
        self.marks.mkdir()
        self._seen = 0
        self._env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCHMARK_REDIS": redis_url,
            probe.FOLDER: str(self.marks),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder)

    def produce(self, kind: str, count: int) -> dict[str, float]:
        command = [self._python, "-m", "benchmarks.peers.produce", f"{self._peer.name}_app", kind, str(count)]
        result = subprocess.run(
            command, cwd=self._folder, env=self._env, capture_output=True, text=True, timeout=ROUND_LIMIT_S, check=False
        )
        if result.returncode:
            raise Unavailable(f"its producer failed: {(result.stderr.strip() or '?').splitlines()[-1]}")
        figures: dict[str, float] = json.loads(result.stdout)
        return figures

    @contextmanager
    def workers(self) -> Iterator[None]:
        """They begin with no marks of former ones."""
        probe.clear(self.marks)
        self._seen = 0
        with (self._folder / "workers.log").open("wb") as log:
            process = subprocess.Popen(
                [self._python, "-m", *self._peer.worker],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield
        finally:
            _end(process)

    def drain(self, count: int) -> float:
        """Jobs per second of so many that are queued."""
        with self.workers():
            ticks = self.wait_ticks(count)
        return (count - 1) / (ticks.last - ticks.first)

    def warm_up(self) -> None:
        """Until a job has run: from here on the workers wait."""
        self.produce("noops", 1)
        self.wait_ticks(1)
        time.sleep(0.5)

    def wait_ticks(self, count: int) -> probe.Ticks:
        """Until so many more jobs have run."""
        end = time.monotonic() + ROUND_LIMIT_S
        while (ticks := probe.read_ticks(self.marks)).count < self._seen + count:
            if time.monotonic() > end:
                log = (self._folder / "workers.log").read_text(errors="replace").strip().splitlines()
                raise Unavailable(
                    f"only {ticks.count - self._seen} of {count} jobs ran: {log[-1] if log else 'no output'}"
                )
            time.sleep(0.02)
        self._seen = ticks.count
        return ticks


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole process group, which is its own."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
