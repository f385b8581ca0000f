"""A power cut at any moment of a daemon's life: what was acknowledged is there, and the database is sound."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, running_daemon
from tests.powercut import trace
from tests.powercut.disk import cuts, write_image
from tests.powercut.load import record
from tests.powercut.replay import replay
from tests.powercut.told import facts

IMAGES = 100


def test_what_was_acknowledged_survives_a_power_cut_at_any_moment(tmp_path: Path) -> None:
    """With a kill -9 half way, so that the recovery from it is cut too."""
    verdict = replay(record(tmp_path / "home", 1.5, kill=True), IMAGES, seed=5)
    assert not verdict.corrupt
    assert not verdict.lost
    assert verdict.images == IMAGES
    assert all(verdict.kinds[kind] >= 5 for kind in ("stored", "ended", "stopping", "setting")), verdict


@pytest.mark.parametrize("mutation", ["acknowledge_before_commit", "relax_inserts", "relax_finishes"])
def test_the_harness_sees_what_is_acknowledged_too_early(tmp_path: Path, mutation: str) -> None:
    recorded = record(tmp_path / "home", 0.7, TEST_MUTATION=mutation)
    lost = False
    for seed in range(20):  # the cuts are made at random places, and a fault shows only in some of them
        verdict = replay(recorded, IMAGES // 2, seed=seed)
        assert not verdict.corrupt
        lost = lost or bool(verdict.lost)
        if lost:
            break
    assert lost


def test_a_daemon_starts_on_what_is_left_and_ends_every_job_it_accepted(tmp_path: Path) -> None:
    ops = trace.read(record(tmp_path / "home", 0.7))
    told = [fact for fact in facts(ops) if fact.kind in {"stored", "ended"}]
    place = told[len(told) // 2].place + 1
    [(_, disk)] = cuts(ops, [place])
    write_image(tmp_path / "after", disk.cut("torn_512", random.Random(5)))
    with running_daemon(tmp_path / "after") as daemon:
        hold_to(daemon, {fact.job_id: fact.value for fact in told if fact.place < place})


def hold_to(daemon: Daemon, ended: dict[str, tuple[object, ...] | None]) -> None:
    """Commands end, one way or another; what had ended is as it was."""
    daemon.rpc("queues.resume.v1", queue="shelf")
    for job_id, end in ended.items():
        job = daemon.job(job_id)
        if end is not None:
            assert (job["state"], job["end_cause"], job["finished_at"], job["exit_code"]) == end
        elif job["execution_mode"] == "SUBPROCESS":
            [job] = daemon.wait(job_id)
            assert job["state"] in {"DONE", "FAILED"}
            assert (job["end_cause"] == "interrupted") <= (job["attempts"] > 0)
