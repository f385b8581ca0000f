"""kill -9 of daemon, launcher, shims and workers at random moments under a mixed load.

The judge does not trust the database: see tests/harness/work.py for what the jobs themselves write down.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import secrets
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.rig import Daemon, RpcFailed, eventually, processes_of, stop_for_certain
from tests.harness.books import contradictions
from tests.harness.load import enqueue, jobs_of, planned, write_apps
from tests.harness.processes import Kind, by_kind, kill
from tests.harness.verdict import Evidence, Verdict

JOBS_PER_KILL = 14
SECONDS_PER_KILL = 0.45
HELPERS: tuple[Kind, ...] = ("launcher", "shim", "shim", "worker", "worker")


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_nothing_is_lost_and_nothing_overlaps(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kills = request.config.getoption("--chaos-kills")
    seed = request.config.getoption("--chaos-seed") or secrets.randbits(32)
    print(f"\nseed {seed}")
    began = time.monotonic()
    home = tmp_path / "home"
    write_apps(home)
    daemon = Daemon(home, SEMANTICA_MAX_PROCESSES="8")
    try:
        daemon.start()
        producer = Producer(daemon, tmp_path, JOBS_PER_KILL * kills, SECONDS_PER_KILL / JOBS_PER_KILL)
        producer.start()
        killer = Killer(daemon, random.Random(seed))
        while killer.count < kills:
            killer.strike()
        producer.finish()
        jobs = jobs_of(daemon, list(producer.ids.values()))
        verdict = Verdict(Evidence(tmp_path), zip(map(planned, producer.ids), jobs, strict=True))
        stats = daemon.stats()
        changed = killer.changed(jobs)
        eventually(
            lambda: not [name for name in (home / "attempts").iterdir() if not name.name.startswith((".", "worker-"))],
            what="the folders of all attempts go",
        )
    finally:
        stop_for_certain(daemon)
    left = processes_of(home)
    evidence = verdict.evidence
    print(
        f"{killer.count} kills {dict(killer.kills)} in {time.monotonic() - began:.0f} s, {len(jobs)} jobs: "
        f"{len(verdict.lost)} lost, {len(verdict.overlaps)} overlaps, {len(verdict.twice)} of the started-at-most-once "
        f"started twice, {len(left)} processes left\n"
        f"{evidence.starts.total()} starts, {evidence.ends.total()} ends, {verdict.superseded} superseded, "
        f"{verdict.brought_down} brought down, {producer.repeats} enqueues repeated, {stats['counters']}"
    )
    assert not verdict.findings
    assert not left
    assert not changed, "final rows have changed"
    assert not contradictions(home / "meta.db")
    assert stats["total_jobs"] == len(jobs)
    assert stats["system"]["running_processes"] == 0


class Killer:
    """Kills one process after the other, sometimes a second one at once; keeps the daemon of the home alive."""

    def __init__(self, daemon: Daemon, dice: random.Random) -> None:
        self.kills: Counter[Kind] = Counter()
        self._daemon = daemon
        self._dice = dice
        self._final: dict[str, tuple[Any, ...]] = {}

    @property
    def count(self) -> int:
        return self.kills.total()

    def strike(self) -> None:
        dice = self._dice
        if dice.random() < 0.5:
            self._pause(dice.choice((0.2, 0.5, 1.2)))
            self._strike_daemon()
        else:
            self._pause(0.3)
            self._strike_helper(dice.choice(HELPERS))
        if self.count % 20 == 0:
            self._remember()

    def changed(self, jobs: list[dict[str, Any]]) -> list[str]:
        """The jobs whose row has changed since it was seen final."""
        now = {job["job_id"]: _end_of(job) for job in jobs}
        return [job_id for job_id, end in self._final.items() if now.get(job_id) != end]

    def _pause(self, longest: float) -> None:
        assert self._daemon.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):  # it never ends by itself: a random moment passes
            self._daemon.process.wait(self._dice.uniform(0.0, longest))

    def _strike_daemon(self) -> None:
        self._daemon.kill()
        self.kills["daemon"] += 1
        while self._dice.random() < 0.3:  # what is ending jobs, just now
            self._strike_helper(self._dice.choice(HELPERS))
        if self._dice.random() < 0.2:  # in the middle of its start and recovery
            self._daemon.spawn()
            self._pause(0.4)
            self._daemon.kill()
            self.kills["daemon"] += 1
        self._daemon.start()

    def _strike_helper(self, kind: Kind) -> None:
        found = by_kind(self._daemon.home)[kind]
        if found and kill(self._dice.choice(found), kind):
            self.kills[kind] += 1

    def _remember(self) -> None:
        for job in self._daemon.rpc("dev.query_jobs.v1", filter={"state": ["DONE", "FAILED"]}, limit=200)["items"]:
            self._final[job["job_id"]] = _end_of(job)


def _end_of(job: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(job.get(name) for name in ("state", "end_cause", "claim_no", "attempts", "finished_at", "exit_code"))


class Producer(threading.Thread):
    """Enqueues all the time; an enqueue that got no answer is repeated with its key until it gets one."""

    def __init__(self, daemon: Daemon, folder: Path, least: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.ids: dict[int, str] = {}
        self.repeats = 0
        self._daemon = daemon
        self._folder = folder
        self._least = least
        self._pause = pause
        self._finish = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._finish.wait(self._pause) or number < self._least:
            try:
                self.ids[number] = enqueue(self._daemon, self._folder, planned(number))
                number += 1
            except RpcFailed:
                raise
            except (OSError, http.client.HTTPException, ValueError):
                self.repeats += 1

    def finish(self) -> None:
        """End when there were enough of them."""
        self._finish.set()
        self.join()
