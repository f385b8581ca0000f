"""One soak: a daemon under a steady load with faults, everything of it looked at each second, and the judgement."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.daemon.rig import Daemon, processes_of, stop_for_certain
from tests.harness.books import contradictions
from tests.harness.ground import Ground
from tests.soak import flat
from tests.soak.faults import Faults
from tests.soak.flat import Growth
from tests.soak.leaky import LeakyBuild
from tests.soak.load import Housekeeper, Producer, Recorder, Visitor, job
from tests.soak.sampling import HomeSample, ProcessSample, Sampler

CALIBRATION = 240
SHARE = 0.4  # of what this machine does
SETTLED_S = 90.0
# Little is kept, so that the janitor has work all the time, and workers are replaced every minute.
SETTINGS = """\
max_finished_jobs = 500
max_db_size_mb = 64
queue_concurrency = 4
worker_max_jobs = 400
worker_idle_ms = 5000
inline_result_bytes = 64
log_max_bytes = 65536
"""


@dataclass(frozen=True)
class Plan:
    """How long, and how often what happens; `rate` in jobs per second, None: a share of what the machine does."""

    seconds: float
    rate: float | None = None
    fault_every_s: float = 6.0
    life_s: float = 90.0
    housekeeping_every_s: float = 15.0
    interval_s: float = 1.0
    judged_life_s: float = flat.LEAST_S
    leak: str | None = None
    seed: int = 0


@dataclass
class Result:
    """What was seen. `wrong` is empty if all promises were kept; `growths` are the judgements over the series."""

    rate: float = 0.0
    capacity: float = 0.0
    jobs: int = 0
    marks: list[tuple[float, str]] = field(default_factory=list)
    processes: list[tuple[float, ProcessSample]] = field(default_factory=list)
    homes: list[HomeSample] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)

    @property
    def growing(self) -> list[Growth]:
        return [one for one in self.growths if not one.flat]


def soak(plan: Plan, folder: Path, out: Path) -> Result:
    """`folder` is new and gets the home; `out` the samples."""
    result = Result()
    ground = Ground(folder, build=Daemon)
    settings = ground.home / ".config" / "semtask" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(SETTINGS)
    if plan.leak is not None:
        limits = {name: ground.daemon.env[name] for name in ("SEMANTICA_MAX_PROCESSES", "SEMANTICA_RECOVERY_WINDOW_MS")}
        ground.daemon = LeakyBuild(ground.home, plan.leak, **limits)
    try:
        ground.daemon.start()
        recorder = Recorder(ground)
        first = 0
        if plan.rate is None:
            first = CALIBRATION
            result.capacity = _capacity(ground, recorder)
        result.rate = plan.rate or SHARE * result.capacity
        recorder.start()
        try:
            _run(plan, ground, first, out, result)
        finally:
            recorder.finish()
        _judge_jobs(ground, recorder, result)
    finally:
        stop_for_certain(ground.daemon)
    result.wrong += [f"left: {what}" for what in processes_of(ground.home).values()]
    result.growths = flat.of_processes(result.processes, plan.judged_life_s)
    result.growths += flat.of_home(result.homes, plan.judged_life_s)
    return result


def _capacity(ground: Ground, recorder: Recorder) -> float:
    """Jobs of the load per second, when they are there all at once."""
    usual = [one for one in map(job, range(CALIBRATION)) if one.also is None]
    ground.enqueue(*usual)
    began = time.monotonic()
    while recorder.open:
        recorder.record()
        if time.monotonic() - began > SETTLED_S:
            raise TimeoutError(f"{len(recorder.open)} jobs of the first {CALIBRATION} have not ended")
        time.sleep(0.05)
    return len(usual) / (time.monotonic() - began)


def _run(plan: Plan, ground: Ground, first: int, out: Path, result: Result) -> None:
    dice = random.Random(plan.seed)
    began = time.monotonic()

    def clock() -> float:
        return time.monotonic() - began

    def mark(what: str) -> None:
        result.marks.append((clock(), what))

    sampler = Sampler(ground.daemon, out, clock, plan.interval_s)
    producer = Producer(ground, result.rate, first, random.Random(dice.random()))
    visitors = [Visitor(ground, 4.0, random.Random(dice.random())) for _ in range(2)]
    keeper = Housekeeper(ground, plan.housekeeping_every_s, ground.folder / "backup.db", mark)
    faults = Faults(ground, random.Random(dice.random()), plan.fault_every_s, plan.life_s, mark)
    producer.start()
    while not ground.jobs:  # which the visitors look for
        time.sleep(0.02)
    threads: list[Sampler | Visitor | Housekeeper] = [sampler, *visitors, keeper]
    for thread in threads:
        thread.start()
    try:
        faults.run(plan.seconds)
    finally:
        for one in (producer, *threads):
            one.finish()
    producer.cancel_all()
    result.processes, result.homes = sampler.processes, sampler.homes
    result.wrong += faults.surprises + keeper.failures
    visits = sum((one.visits for one in visitors), Counter[str]())
    kinds = Counter(what for _, what in result.marks)
    result.summary.append(f"faults and housekeeping: {_told(kinds)}; {producer.repeats} calls without an answer")
    result.summary.append(f"what clients did beside that: {_told(visits)}")


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count:,}" for what, count in sorted(counts.items()))


def _judge_jobs(ground: Ground, recorder: Recorder, result: Result) -> None:
    end = time.monotonic() + SETTLED_S
    while recorder.open and time.monotonic() < end:
        recorder.record()
        time.sleep(0.1)
    verdict = ground.verdict(recorder.ended)
    result.jobs = len(ground.jobs)
    result.wrong += ground.findings(recorder.ended)
    result.wrong += [f"its final row has changed: {job_id}" for job_id in recorder.changed]
    states = Counter(str(end["state"]) for end in recorder.ended.values())
    result.summary.append(
        f"{result.jobs} jobs: {len(verdict.lost)} lost, {len(verdict.overlaps)} overlaps, {len(verdict.twice)} started "
        f"twice though at most once was asked for; {_told(states)}"
    )
    result.summary.append(f"counters of the daemon: {_told(ground.daemon.stats()['counters'])}")
    if os.path.exists(ground.folder / "backup.db"):
        result.wrong += [f"in the last backup: {text}" for text in contradictions(ground.folder / "backup.db")]
