"""kill -9 at random moments under load, judged by a detector that does not trust the database.

Every run of a job takes a lock of its own with flock(1). A second run of the same job beside it finds the lock taken
and leaves a mark. Starts and ends are appended to one file that the daemon knows nothing of.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import secrets
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, Json, running_daemon

JOBS = 300
# $1 folder, $2 name of the job. The grandchild leaves the session; it must be gone before a second run starts.
BODY = """
exec 9> "$1/lock.$2"
flock -n 9 || { echo "overlap $2" >> "$1/history"; exit 1; }
echo "start $2" >> "$1/history"
setsid sh -c 'sleep 0.05' &
sleep 0.0$((${#2} % 5 + 2))
echo "end $2" >> "$1/history"
"""


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_nothing_is_lost_and_nothing_overlaps(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rounds = request.config.getoption("--chaos-rounds")
    seed = request.config.getoption("--chaos-seed") or secrets.randbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    names = [f"job-{n}" for n in range(max(JOBS, 15 * rounds))]
    (tmp_path / "history").touch()
    with running_daemon(tmp_path / "home", SEMANTICA_MAX_PROCESSES="8") as daemon:
        producer = Producer(daemon, tmp_path, names, pause=rounds * 0.45 / len(names))
        producer.start()
        for _ in range(rounds):
            assert daemon.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):  # it never ends by itself: a random moment passes
                daemon.process.wait(dice.uniform(0.0, 0.4))
            daemon.kill()
            daemon.start()
        producer.join()
        jobs: dict[str, Json] = {}
        for start in range(0, len(names), 200):
            part = names[start : start + 200]
            jobs.update(zip(part, daemon.wait(*[producer.ids[name] for name in part], timeout_ms=60_000), strict=True))
        stats = daemon.stats()
        assert stats["system"]["running_processes"] == 0
        assert stats["total_jobs"] == len(names)
    history = [line.split() for line in (tmp_path / "history").read_text().splitlines()]
    marks = Counter(mark for mark, _ in history)
    starts = Counter(name for mark, name in history if mark == "start")
    ended = {name for mark, name in history if mark == "end"}
    assert marks["overlap"] == 0
    for name, job in jobs.items():
        if on_interrupt_of(name) == "requeue":
            assert job["state"] == "DONE", job
        else:
            assert starts[name] <= 1, f"{name} was started {starts[name]} times"
            assert (job["state"], job["end_cause"]) in {("DONE", "success"), ("FAILED", "interrupted")}, job
        if job["state"] == "DONE":
            assert name in ended
    interrupted = sum(job["state"] == "FAILED" for job in jobs.values())
    print(
        f"{rounds} kills, {len(names)} jobs, 0 lost, 0 overlaps, {marks['start']} starts, {marks['end']} ends, "
        f"{interrupted} started once and interrupted, {producer.repeats} enqueues repeated, {stats['counters']}"
    )


def on_interrupt_of(name: str) -> str:
    """Every third job may be started once at most, the others run until they have succeeded."""
    return "fail" if int(name.rpartition("-")[2]) % 3 == 0 else "requeue"


class Producer(threading.Thread):
    """Enqueues all the time; an enqueue that got no answer is repeated with its key until it gets one."""

    def __init__(self, daemon: Daemon, folder: Path, names: list[str], pause: float) -> None:
        super().__init__(daemon=True)
        self.ids: dict[str, str] = {}
        self.repeats = 0
        self._daemon = daemon
        self._folder = folder
        self._names = names
        self._pace = threading.Event()
        self._pause = pause

    def run(self) -> None:
        for name in self._names:
            while name not in self.ids:
                try:
                    self.ids[name] = self._enqueue(name)
                except (OSError, http.client.HTTPException, ValueError):
                    self.repeats += 1
                self._pace.wait(self._pause)

    def _enqueue(self, name: str) -> str:
        return self._daemon.command(
            *("sh", "-c", BODY, "sh", str(self._folder), name),
            on_interrupt=on_interrupt_of(name),
            idempotency_key=name,
            queue=f"q{len(name) % 3}",
        )
