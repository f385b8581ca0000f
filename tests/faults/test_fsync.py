"""A failing fsync: nothing is acknowledged that is not on the disk, neither then nor later."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon.rig import RpcFailed, eventually, stop_for_certain
from tests.faults.disk import SYNC
from tests.powercut import trace
from tests.powercut.load import RecordedDaemon
from tests.powercut.replay import replay
from tests.powercut.trace import Kind


def store(daemon: RecordedDaemon, durability: str, text: str = "x" * 500) -> str:
    """A job that waits for its task. The request is named after its durability: see tests.powercut.told."""
    job = {"job_type": "note", "execution_mode": "IN_PROCESS", "payload": {"text": text}, "durability": durability}
    return str(daemon.rpc("dev.enqueue.v1", durability, **job)["job_id"])


def test_a_failing_fsync_is_told_and_what_is_acknowledged_later_is_on_the_disk(tmp_path: Path) -> None:
    """What was committed without fsync is lost with it on the disk, though everybody still sees it: later commits must
    not build on it."""
    daemon = RecordedDaemon(tmp_path / "home").start()
    try:
        store(daemon, "fsync")
        loose = [store(daemon, "os") for _ in range(5)]
        daemon.suffer(SYNC)
        before = daemon.stats()["total_jobs"]
        for _ in range(3):
            with pytest.raises(RpcFailed) as refused:
                store(daemon, "fsync")
            assert refused.value.code == 4003
            assert "Nothing was stored" in refused.value.message
            assert refused.value.data["retry_after_ms"] > 0
        assert daemon.get("/readyz")[0] == 503
        assert daemon.stats()["total_jobs"] == before
        daemon.suffer()
        eventually(lambda: daemon.get("/readyz")[0] == 200, what="the daemon writes again")
        late = [store(daemon, "fsync") for _ in range(5)]
        assert {daemon.job(job_id)["state"] for job_id in [*loose, *late]} == {"QUEUED"}
        daemon.kill()
    finally:
        stop_for_certain(daemon)
    verdict = replay(daemon.trace, 90, seed=3, sick=True)
    assert not verdict.corrupt
    assert not verdict.lost
    assert verdict.kinds["stored"] == 6
    ops = trace.read(daemon.trace)
    [*_, last] = [place for place, op in enumerate(ops) if op.kind is Kind.FAILED_SYNC]
    after = [op.kind for op in ops[last + 1 :] if op.file.startswith("meta.db")]
    assert after.index(Kind.OPEN) < after.index(Kind.SYNC), "an fsync was tried again on the file that it failed on"


def test_the_harness_sees_what_is_appended_to_commits_that_the_disk_has_lost(tmp_path: Path) -> None:
    daemon = RecordedDaemon(tmp_path / "home", TEST_MUTATION="trust_failed_syncs").start()
    try:
        for _ in range(3):
            store(daemon, "os")
        daemon.suffer(SYNC)
        assert not accepted(daemon)
        daemon.suffer()
        eventually(lambda: accepted(daemon), what="the daemon writes again")
        for _ in range(10):
            assert accepted(daemon)
        daemon.kill()
    finally:
        stop_for_certain(daemon)
    # The cuts are made at random places, and the fault shows only behind the failed sync.
    assert any(replay(daemon.trace, 40, seed=seed, sick=True).lost for seed in range(10))


def test_a_failing_fsync_of_a_checkpoint_takes_nothing_with_it(tmp_path: Path) -> None:
    """SQLite itself does not tell of it: nobody asked for that checkpoint."""
    daemon = RecordedDaemon(tmp_path / "home").start()
    try:
        store(daemon, "fsync")
        daemon.suffer(SYNC)
        text = "x" * 200_000
        while not failed_syncs(daemon):
            store(daemon, "os", text=text)
        daemon.suffer()
        for _ in range(3):
            eventually(lambda: accepted(daemon), what="the daemon writes again")
        daemon.kill()
    finally:
        stop_for_certain(daemon)
    verdict = replay(daemon.trace, 60, seed=3, sick=True)
    assert not verdict.corrupt
    assert not verdict.lost
    assert verdict.kinds["stored"] == 4


def failed_syncs(daemon: RecordedDaemon) -> int:
    return sum(op.kind is Kind.FAILED_SYNC for op in trace.read(daemon.trace))


def accepted(daemon: RecordedDaemon) -> bool:
    try:
        return bool(store(daemon, "fsync"))
    except RpcFailed as refused:
        if refused.code != 4003:
            raise
        return False
