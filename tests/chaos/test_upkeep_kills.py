"""`semtask db restore` and `db backup`, killed at every step: the old database or the new one, no half of a copy."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import apsw
import pytest

from tests.daemon.rig import Daemon, eventually, processes_of, running_daemon, stop_for_certain
from tests.figures import tell
from tests.harness.books import contradictions

ROOT = Path(__file__).resolve().parents[2]
SOME = 10
OLD, NEW = ["since", "then"], ["then"]  # the tags of the jobs


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that was killed under a running job, with a backup of before that job beside it."""
    place = tmp_path_factory.mktemp("upkeep")
    daemon = Daemon(place / "before" / "home")
    (place / "before").mkdir()
    try:
        daemon.start()
        daemon.wait(daemon.command("true", tag="then"))
        subprocess.run(
            [sys.executable, "-m", "semtask", "db", "backup", str(place / "before" / "copy")],
            env=daemon.env,
            check=True,
            capture_output=True,
        )
        running = daemon.command("sleep", "600", tag="since", grace_ms=0)
        eventually(lambda: daemon.job(running)["pid"])
        daemon.kill()
        eventually(lambda: not processes_of(daemon.home))
    finally:
        stop_for_certain(daemon)
    (daemon.home / "run" / "rpc.sock").unlink()  # cannot be copied
    assert (daemon.home / "meta.db-wal").stat().st_size, "the log goes with the database"
    assert tags(place / "before" / "copy") == NEW
    return place


def killed(before: Path, place: Path, steps: list[int], *words: str) -> int:
    """How many steps there are, where nobody is killed."""
    shutil.copytree(before / "before", place / "before", dirs_exist_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("SEMANTICA_")}
    numbers = ",".join(map(str, steps))
    argv = [sys.executable, "-m", "tests.harness.killed", str(place), numbers, *words]
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    if steps:
        tell("kills of db backup and db restore, one at each step", asked="", got=len(steps))
        return 0
    count, code = done.stdout.split()[-2:]
    assert code == "0", done.stdout + done.stderr
    return int(count)


def tags(path: Path) -> list[str]:
    db = apsw.Connection(str(path))
    try:
        assert db.pragma("integrity_check") == "ok"
        return [str(tag) for (tag,) in db.execute("SELECT tag FROM jobs ORDER BY tag")]
    finally:
        db.close()


@pytest.fixture
def steps_of(request: pytest.FixtureRequest) -> tuple[random.Random, bool]:
    seed = request.config.getoption("--chaos-seed") or secrets.randbits(32)
    print(f"\nseed {seed}")
    return random.Random(seed), request.config.getoption("--kill-points") == "all"


def some(count: int, chosen: tuple[random.Random, bool]) -> list[int]:
    """The last ones always: what is made is put in its place then."""
    dice, everywhere = chosen
    numbers = range(1, count + 1)
    return list(numbers) if everywhere or count <= SOME else sorted({*dice.sample(numbers, SOME), *numbers[-8:]})


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_a_killed_restore_leaves_the_old_database_or_the_new_one(
    before: Path, tmp_path: Path, steps_of: tuple[random.Random, bool]
) -> None:
    words = ("db", "restore", "{}/copy")
    count = killed(before, tmp_path, [], *words)
    steps = some(count, steps_of)
    killed(before, tmp_path, steps, *words)
    found: Counter[str] = Counter()
    starts: dict[str, Path] = {}
    for step in steps:
        home = tmp_path / str(step) / "home"
        names = sorted(name for name in os.listdir(home) if name.startswith((".meta", "meta.db")))
        kept = [home / name for name in names if "before-restore" in name and not name.endswith(("-wal", "-shm"))]
        now = tags(home / "meta.db")
        assert now in (OLD, NEW), step
        assert not contradictions(home / "meta.db")
        assert now == OLD or [tags(path) for path in kept] == [OLD], step
        found[now[0]] += 1
        starts.setdefault(f"{now} {[name.split('-')[0].rstrip('0123456789') for name in names]}", home)
    assert found["since"], "killed before it was replaced"
    assert found["then"], "and after it"
    for home in starts.values():
        goes_on(home)
    print(f"{count} steps, killed at {len(steps)} of them: {dict(found)}, {len(starts)} kinds of what is left")


def goes_on(home: Path) -> None:
    """The next daemon starts on it, and what ran is judged; the restore can be made again."""
    with running_daemon(home) as daemon:
        for job in daemon.rpc("dev.query_jobs.v1", filter={"tag": "since"})["items"]:
            assert daemon.wait(job["job_id"])[0]["end_cause"] == "interrupted"
        assert daemon.wait(daemon.command("true"))[0]["state"] == "DONE"
    again = [sys.executable, "-m", "semtask", "db", "restore", str(home.parent / "copy")]
    done = subprocess.run(again, env=Daemon(home).env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert tags(home / "meta.db") == NEW


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_a_killed_backup_leaves_no_half_of_one_under_its_name(
    before: Path, tmp_path: Path, steps_of: tuple[random.Random, bool], there: bool
) -> None:
    words = ("db", "backup", "{}/copy", "--force") if there else ("db", "backup", "{}/made")
    count = killed(before, tmp_path, [], *words)
    steps = some(count, steps_of)
    killed(before, tmp_path, steps, *words)
    made = 0
    for step in steps:
        target = tmp_path / str(step) / ("copy" if there else "made")
        assert tags(tmp_path / str(step) / "home" / "meta.db") == OLD
        if there or target.exists():
            assert tags(target) == OLD or (there and tags(target) == NEW), step
            made += tags(target) == OLD
    assert 0 < made < len(steps), "killed before it had its name, and after it"
