"""The app of test_end_to_end.py: imported by the test and by the workers of its daemon."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pydantic

from semtask import Cancel, JobFailed, Permanent, Retry, Semantica, Snooze, current_job

app = Semantica(autostart=False)


@dataclass
class Entry:
    path: Path
    lines: int = 0
    seen: set[datetime] = field(default_factory=set)


@dataclass
class Changing:
    """Not the same if it is constructed again."""

    x: int
    ran: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self.x += 1
        Changing.ran += 1


class Report(pydantic.BaseModel):
    key: UUID
    took: timedelta


@app.task
def add(a: int, b: int = 1) -> int:
    return a + b


@app.task
def typed(entry: Entry, /, *more: bytes, key: UUID, **options: Path) -> tuple[Entry, list[bytes], dict[str, Path]]:
    assert isinstance(key, UUID)
    return Entry(entry.path / "x", entry.lines + 1, entry.seen), list(more), options


@app.task
def union(when: date | datetime, who: UUID | str, entry: Entry | Report | None) -> Entry | Report | UUID | str:
    assert type(when) in {date, datetime}
    return entry or who


@app.task
def changing(value: Changing) -> tuple[Changing, int, int]:
    """As it arrived, and what has run since this worker began: `Changing.ran`."""
    return value, value.x, Changing.ran


@app.task
async def report(key: UUID) -> Report:
    await asyncio.sleep(0)
    return Report(key=key, took=timedelta(seconds=1.5))


@app.task
def fails(how: str) -> None:
    match how:
        case "cause":
            try:
                os.environ["SEMTASK_TESTS_MISSING"]
            except KeyError as error:
                raise ValueError("no entry") from error
        case "permanent":
            raise Permanent("cannot be mended")
        case "cancel":
            raise Cancel("not wanted")
        case "exit":
            os._exit(0)
        case _:
            raise AssertionError(how)


@app.task(retry=Retry(3, base=0.01))
def flaky(marker: Path) -> int:
    """Fails twice."""
    attempt = current_job().attempt
    print(f"attempt {attempt}")
    if attempt < 3:
        raise OSError("not yet")
    return attempt


@app.task
def snoozes(marker: Path) -> bool:
    if not marker.exists():
        marker.touch()
        raise Snooze(0.05)
    return True


@app.task
def wrong_result() -> int:
    return "five"  # type: ignore[return-value]


@app.task
def turns(number: complex) -> complex:
    """Its annotations have no JSON form: it cannot be offered, and no other task suffers by it."""
    return number


@app.task
def untyped_result(how: str) -> Any:
    """What plain JSON would change."""
    return {"tuple": (1,), "keys": {1: 1, "1": 2}, "date": date(2026, 1, 1)}[how]


@app.task
def large(size: int) -> str:
    return "x" * size


@app.task
def sleeps(seconds: float) -> None:
    time.sleep(seconds)


@app.task
async def dozes(seconds: float) -> None:
    await asyncio.sleep(seconds)


@app.task
def busy(go: Path) -> str:
    job = current_job()
    job.progress(1, 2, "half")
    job.artifact("note.txt", "kept")
    print("begun", flush=True)
    while not go.exists():
        job.check_cancelled()
        time.sleep(0.01)
    job.progress(2, 2, "all")
    return job.job_id


@app.task(queue="narrow")
def family(depth: int) -> int:
    """Waits for its child in the queue that it holds itself."""
    return 1 + family.enqueue(depth - 1).result(timeout=60) if depth else 0


@app.task(queue="narrow")
async def async_family(depth: int) -> int:
    return 1 + await async_family.enqueue(depth - 1) if depth else 0


@app.task
def parent_of_a_failure() -> str:
    try:
        fails.enqueue("cause").result(timeout=60)
    except JobFailed as failure:
        return failure.traceback
    return ""


@app.task
def runs_a_command() -> int:
    return app.run("sh", "-c", "exit 7").result(timeout=60).exit_code
