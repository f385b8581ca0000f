"""The soak can tell a leak from a load; its long form is `make soak`."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak.flat import OF_A_PROCESS, OF_THE_HOME, growth, of_processes
from tests.soak.run import Plan, soak
from tests.soak.sampling import ProcessSample


def saw(low: float, high: float, period: int, seconds: int) -> list[tuple[float, float]]:
    return [(float(at), low + (high - low) * (at % period) / period) for at in range(seconds)]


def test_what_is_cleaned_up_again_and_again_is_flat() -> None:
    found = growth("rows", saw(500, 1000, 7, 90), OF_THE_HOME["rows"])
    assert found is not None
    assert found.flat, found


def test_a_burst_and_a_fault_are_no_growth() -> None:
    series = [(float(at), 300.0 if 60 <= at < 66 else 40.0 + at % 3) for at in range(90)]
    found = growth("descriptors", series, OF_A_PROCESS["daemon", "descriptors"])
    assert found is not None
    assert found.flat, found


def test_growth_below_a_saw_is_found() -> None:
    series = [(at, value + 12 * at) for at, value in saw(500, 1000, 7, 90)]
    found = growth("rows", series, OF_THE_HOME["rows"])
    assert found is not None
    assert not found.flat
    assert found.by == pytest.approx(12 * 0.7 * 89, rel=0.2)


def test_warm_up_is_not_judged() -> None:
    series = [(float(at), min(at, 25) * 1024.0) for at in range(90)]
    found = growth("rss_kb", series, OF_A_PROCESS["daemon", "rss_kb"])
    assert found is not None
    assert found.flat, found


def recorded(descriptors: float = 0.0, kilobytes: float = 0.0) -> list[tuple[float, ProcessSample]]:
    """A daemon that does 20 jobs per second for 90 s, and keeps so much of each; a new one after 75 s more."""
    dice = random.Random(7)
    samples = []
    for life, (began, seconds) in enumerate(((0, 75), (75, 15))):
        for at in range(seconds):
            jobs = 20 * at
            one = ProcessSample(
                kind="daemon",
                pid=4000 + life,
                started=began,
                descriptors=round(40 + dice.uniform(-6, 9) + descriptors * jobs),
                threads=7 + (at > 30),
                rss_kb=round(47_000 + min(at, 20) * 150 + dice.uniform(-80, 80) + kilobytes * jobs),
                pss_kb=36_000,
                cpu_s=0.2 * at,
            )
            samples.append((float(began + at), one))
    return samples


def test_a_recorded_run_is_flat_and_its_short_life_not_judged() -> None:
    found = of_processes(recorded())
    assert len(found) == 3
    assert [one for one in found if not one.flat] == []


@pytest.mark.parametrize(
    ("leak", "grows"),
    [({"descriptors": 1.0}, "descriptors of daemon 4000"), ({"kilobytes": 16.0}, "rss_kb of daemon 4000")],
)
def test_a_leak_in_a_recorded_run_is_named(leak: dict[str, float], grows: str) -> None:
    assert [one.name for one in of_processes(recorded(**leak)) if not one.flat] == [grows]


QUICK = Plan(
    seconds=11.0,
    rate=15.0,
    fault_every_s=1.5,
    life_s=8.0,
    housekeeping_every_s=3.0,
    interval_s=0.2,
    judged_life_s=5.0,
)


@pytest.mark.chaos
@pytest.mark.timeout(90)
def test_one_descriptor_for_each_job_is_found_in_a_real_run(tmp_path: Path) -> None:
    """Under faults, and with the promises kept: only the series tells it.

    A slow machine runs fewer jobs, and needs longer lives for a leak that stands out.
    """
    for factor in (1, 3):
        plan = replace(QUICK, leak="descriptors", seconds=QUICK.seconds * factor, life_s=QUICK.life_s * factor)
        folder = tmp_path / str(factor)
        folder.mkdir()
        result = soak(plan, folder / "ground", folder)
        assert result.wrong == []
        assert result.jobs > 30
        assert {"daemon", "squeeze", "backup"} <= {what for _, what in result.marks}
        growing = [one.name for one in result.growing if one.name.startswith("descriptors of daemon")]
        if growing:
            break
    assert growing, result.growths
    lines = (folder / "home.csv").read_text().splitlines()
    assert len(lines) == len(result.homes) + 1 > 10
