"""Random kill -9 under a load that goes on all the time."""

from __future__ import annotations

import contextlib
import http.client
import random
import subprocess
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tests.daemon.rig import Json, RpcFailed
from tests.harness.ground import Ground
from tests.harness.load import enqueue, planned
from tests.harness.processes import Kind, by_kind, kill

JOBS_PER_KILL = 14
SECONDS_PER_KILL = 0.45
HELPERS: tuple[Kind, ...] = ("launcher", "shim", "shim", "worker", "worker")


class Chaos:
    """Kills one process after the other, sometimes a second one at once; keeps the daemon of the ground alive."""

    def __init__(self, ground: Ground, dice: random.Random) -> None:
        self.kills: Counter[Kind] = Counter()
        self.producer = Producer(ground)
        self._ground = ground
        self._daemon = ground.daemon
        self._dice = dice
        self._final: dict[str, tuple[Any, ...]] = {}

    @property
    def count(self) -> int:
        return self.kills.total()

    def run(self, kills: int) -> None:
        """Until so many processes were killed, and the jobs for them are enqueued."""
        self._ground.revive()
        self.producer.start()
        while self.count < kills:
            self._strike()
        self.producer.finish(JOBS_PER_KILL * kills)

    def changed(self, jobs: Mapping[str, Json]) -> list[str]:
        """The jobs, by name, whose row has changed since it was seen final."""
        ends = {job["job_id"]: _end_of(job) for job in jobs.values()}
        return [job_id for job_id, end in self._final.items() if ends.get(job_id) != end]

    def _strike(self) -> None:
        dice = self._dice
        if dice.random() < 0.5:
            self._pause(dice.choice((0.2, 0.5, 1.2)))
            self._strike_daemon()
        else:
            self._pause(0.3)
            self._strike_helper(dice.choice(HELPERS))
        if self.count % 20 == 0:
            self._remember()

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


def _end_of(job: Json) -> tuple[Any, ...]:
    return tuple(job.get(name) for name in ("state", "end_cause", "claim_no", "attempts", "finished_at", "exit_code"))


class Producer(threading.Thread):
    """Enqueues all the time; an enqueue that got no answer is repeated with its key until it gets one."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(daemon=True)
        self.repeats = 0
        self._ground = ground
        self._pause = SECONDS_PER_KILL / JOBS_PER_KILL
        self._least: int | None = None
        self._finish = threading.Event()

    def run(self) -> None:
        number = 0
        while self._least is None or number < self._least:
            self._finish.wait(self._pause)
            job = planned(number)
            try:
                self._ground.jobs[job.name] = job, enqueue(self._ground.daemon, self._ground.folder, job)
                number += 1
            except RpcFailed:
                raise
            except (OSError, http.client.HTTPException, ValueError):
                self.repeats += 1

    def finish(self, least: int) -> None:
        """End when there were so many of them."""
        self._least = least
        self._finish.set()
        self.join()
