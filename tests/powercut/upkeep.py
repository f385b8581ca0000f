"""A power cut while a schema is migrated, while history is deleted and while the file is made smaller: the scenes."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from semtask.errors import StartupError
from semtask.model import outcome as outcomes
from semtask.store import migrate as migrations
from semtask.store.migrate import Migration, available
from semtask.store.requests import ClaimRequest, Finish, Purge
from semtask.store.sqlite import SqliteStore, open_store
from semtask.store.sqlite_file import SqliteFile
from tests.powercut import trace
from tests.powercut.disk import POLICIES, cuts, write_image
from tests.powercut.told import Fact, look
from tests.powercut.trace import Kind, Op, Recorder
from tests.powercut.vfs import hooked
from tests.store.harness import NOW, SUBPROCESS, facts, new_job

FINISHED = 300
LIVE = 60
# Of every kind: a table is changed, one is built anew from another, rows are filled in, an index is made.
COLOURS = Migration(
    2,
    "colours",
    """
    ALTER TABLE jobs ADD COLUMN colour TEXT;
    UPDATE jobs SET colour = 'colour ' || seq;
    CREATE INDEX jobs_colour ON jobs (colour);
    CREATE TABLE counters_anew (name TEXT PRIMARY KEY, value INTEGER NOT NULL, since INTEGER) STRICT, WITHOUT ROWID;
    INSERT INTO counters_anew SELECT name, value, 7 FROM counters;
    DROP TABLE counters;
    ALTER TABLE counters_anew RENAME TO counters;
    """,
    "SELECT 1",
)


async def _open(path: Path) -> SqliteStore:
    return await open_store(path, on_commit=lambda _: None, now=lambda: NOW, fatal=lambda _: None)


async def _fill(path: Path) -> list[str]:
    """The ids of finished jobs, oldest first, then of waiting ones."""
    store = await _open(path)
    try:
        done = [new_job(payload='"%s"' % ("x" * 900)) for _ in range(FINISHED)]
        await store.insert(done, durable=True)
        claim = ClaimRequest(
            mode=SUBPROCESS, queues={"default": FINISHED}, limit=FINISHED, now=NOW, node_id="node", facts=facts
        )
        claimed = await store.claim(claim)
        ends = [
            Finish(job_id=job.job_id, claim_no=1, outcome=outcomes.of_command(1 << 8), now=NOW + n, jitter=1.0)
            for n, job in enumerate(claimed)
        ]
        await store.finish_many(ends)
        live = [new_job(payload='"%s"' % ("y" * 900)) for _ in range(LIVE)]
        await store.insert(live, durable=True)
        await store.count({"some.counter": 5})
        return [job.job_id for job in [*done, *live]]
    finally:
        await store.close()


def filled(folder: Path) -> tuple[Path, list[str]]:
    """A database, and its jobs."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    return home / "meta.db", asyncio.run(_fill(home / "meta.db"))


@contextmanager
def recorded(database: Path, kind: type[Recorder] = Recorder) -> Iterator[list[Op]]:
    """What happens to the database and its backups while the block runs; what was there before is on the disk."""
    file = database.parent.parent / "trace"
    recorder = kind(file, database.parent)
    recorder.state(database, durable=True)
    ops: list[Op] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", _noting_fsync(recorder))
        patch.setattr(os, "rename", _noting_rename(recorder))
        with hooked(recorder):
            yield ops
    recorder.close()
    ops += trace.read(file)


def _noting_fsync(recorder: Recorder) -> Callable[[int], None]:
    real = os.fsync

    def fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            real(fd)
            recorder.note(Op(Kind.FOLDER, ""))
        else:
            real(fd)
            recorder.sync(str(path), lambda: 0)

    return fsync


def _noting_rename(recorder: Recorder) -> Callable[[Path, Path], None]:
    real = os.rename

    def rename(old: Path, new: Path) -> None:
        real(old, new)
        recorder.note(Op(Kind.RENAME, old.name, 0, new.name.encode()))

    return rename


def images(ops: list[Op], folder: Path, count: int, seed: int) -> Iterator[Path]:
    """The database as it may be left by power cuts, one after the other. What was there at first is always there."""
    dice = random.Random(seed)
    first = next(place for place, op in enumerate(ops) if op.kind is Kind.SYNC) + 1
    places = sorted(dice.choices(range(first, len(ops) + 1), k=count))
    for number, (_, disk) in enumerate(cuts(ops, places)):
        image = folder / f"image{number}"
        write_image(image, disk.cut(POLICIES[number % len(POLICIES)], dice))
        yield image / "meta.db"
        shutil.rmtree(image)


# --- migration --------------------------------------------------------------------------------------------------------


def _migrate(database: Path, now: int) -> None:
    SqliteFile(database).open(now).close()


def _state(database: Path) -> tuple[int, str, int, list[str]]:
    """Version, schema, rows that are filled in, ids of the jobs. Raises AssertionError, apsw.Error."""
    db = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        [(version,)] = db.execute("SELECT max(version) FROM schema_versions").fetchall()
        schema = "\n".join(str(sql) for (sql,) in db.execute("SELECT sql FROM sqlite_schema ORDER BY name"))
        has_colour = "colour TEXT" in schema
        select = "SELECT count(*) FROM jobs WHERE colour = 'colour ' || seq" if has_colour else "SELECT 0"
        [(coloured,)] = db.execute(select).fetchall()
        ids = [str(job_id) for (job_id,) in db.execute("SELECT hex(job_id) FROM jobs ORDER BY seq")]
        return int(str(version)), schema, int(str(coloured)), ids
    finally:
        db.close()


def migration(folder: Path, count: int, seed: int) -> tuple[int, int, list[str]]:
    """How many images have the old schema, how many the new one, and what is wrong with them."""
    database, _ = filled(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "available", lambda: [*available(), COLOURS])
        return _cut_migration(database, folder, count, seed)


def _cut_migration(database: Path, folder: Path, count: int, seed: int) -> tuple[int, int, list[str]]:
    before = _state(database)
    with recorded(database) as ops:
        _migrate(database, NOW)
    after = _state(database)
    assert (before[0], after[0]) == (1, 2)
    old = new = 0
    wrong = []
    for image in images(ops, folder, count, seed):
        try:
            state = _state(image)
            if state == before:
                old += 1
            elif state == after:
                new += 1
            else:
                wrong.append(f"{image}: version {state[0]}, {state[2]} of {len(state[3])} rows")
            kept = list(image.parent.glob("*.backup"))
            assert all(_state(backup) == before for backup in kept), "a backup is not whole"
            assert kept or state == before, "the schema is new, but there is no backup of the old one"
            _migrate(image, NOW + 1)
            assert _state(image) == after
        except (AssertionError, apsw.Error, StartupError) as error:
            wrong.append(f"{image}: {error!r}")
    return old, new, wrong


# --- deleting history, and making the file smaller -------------------------------------------------------------------


async def _clean(database: Path) -> tuple[int, int]:
    """Delete all history but the last 100 ends, and give the pages back; the sizes before and after."""
    store = await _open(database)
    try:
        before = await store.size_bytes()
        while (await store.purge(Purge(keep=100, limit=50))).more:
            pass
        await store.purge_subjects(100)
        while await store.compact(16):
            await store.checkpoint()
        await store.checkpoint()
        return before, await store.size_bytes()
    finally:
        await store.close()


def cleaning(folder: Path, count: int, seed: int, kind: type[Recorder] = Recorder) -> list[str]:
    """What is wrong with the images."""
    database, ids = filled(folder)
    with recorded(database, kind) as ops:
        before, after = asyncio.run(_clean(database))
    assert after < before * 0.6
    assert any(op.kind is Kind.TRUNCATE and op.file == "meta.db" and op.number < before * 0.9 for op in ops[2:])
    kept = [Fact(0, "stored", job_id) for job_id in ids[FINISHED - 100 :]]
    wrong = []
    for image in images(ops, folder, count, seed):
        found = look(image, kept, ids[FINISHED - 100 :])
        if found.corrupt or found.lost:
            wrong.append(f"{image}: {found.corrupt} {found.lost[:1]}")
    return wrong
