"""kill -9 at random moments under load, judged by a detector that does not trust the database.

Every run of a job takes a lock of its own with flock(1). A second run of the same job beside it finds the lock taken
and leaves a mark. Starts and ends are appended to one file that the daemon knows nothing of.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, eventually, processes_of, running_daemon

JOBS = 300
# $1 folder, $2 name of the job. The grandchild leaves the session; it must be gone before a second run starts.
BODY = """
exec 9> "$1/lock.$2"
flock -n 9 || { echo "overlap $2" >> "$1/history"; exit 1; }
echo "start $2" >> "$1/history"
setsid sh -c 'sleep 0.05' &
sleep 0.0$((${#2} % 5 + 1))
echo "end $2" >> "$1/history"
"""


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_nothing_is_lost_and_nothing_overlaps(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rounds = request.config.getoption("--chaos-rounds")
    seed = request.config.getoption("--chaos-seed") or secrets.randbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    history = tmp_path / "history"
    history.touch()
    names = []
    with running_daemon(tmp_path / "home", SEMANTICA_MAX_PROCESSES="8") as daemon:
        ids: dict[str, str] = {}
        for number in range(rounds):
            fresh = [f"{number}-{n}" for n in range(JOBS // rounds + 1)]
            names += fresh
            for name in fresh:
                ids[name] = enqueue(daemon, tmp_path, name)
            pause = dice.uniform(0.0, 0.4)
            target = daemon.process
            assert target is not None
            try:
                target.wait(pause)  # it does not end by itself: this is the random moment
            except Exception:  # noqa: BLE001, S110
                pass
            daemon.kill()
            daemon.start()
        jobs = []
        for start in range(0, len(names), 100):
            jobs += daemon.wait(*[ids[name] for name in names[start : start + 100]], timeout_ms=60_000)
        assert Counter(j["state"] for j in jobs) == {"DONE": len(names)}
        marks = Counter(line.split()[0] for line in history.read_text().splitlines())
        ended = {line.split()[1] for line in history.read_text().splitlines() if line.startswith("end ")}
        assert marks["overlap"] == 0
        assert ended == set(names)
        print(f"{rounds} kills, {len(names)} jobs, {marks['start']} starts, {marks['end']} ends")
        eventually(lambda: daemon.stats()["system"]["running_processes"] == 0)
    assert not processes_of(tmp_path)


def enqueue(daemon: Daemon, folder: Path, name: str) -> str:
    return daemon.command(
        "sh",
        "-c",
        BODY,
        "sh",
        str(folder),
        name,
        on_interrupt="requeue",
        idempotency_key=name,
        queue=f"q{len(name) % 3}",
    )
