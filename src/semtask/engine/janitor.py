"""Keeps history bounded: finished jobs and their logs by age, count and size, and what a crash left on disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from semtask.engine.background import Background
from semtask.engine.supervision import supervised
from semtask.errors import RpcError
from semtask.host.clocks import Clock
from semtask.model.state import FINAL
from semtask.protocol.admin import Maintained
from semtask.store.base import Change, Store
from semtask.store.requests import Purge

log = logging.getLogger("semtask.janitor")

DAY_MS = 86_400_000
EVER = 1 << 62
INTERVAL_S = 3600.0
# When this many jobs have ended since the last pass, the next one does not wait for its hour.
ENDS_PER_PASS = 1000
LEAST_INTERVAL_S = 5.0

# A batch of rows is deleted in a few milliseconds; then others have the store for four times as long.
ROWS_A_BATCH = 200
LEAST_ROWS = 10
PAGES_A_STEP = 256
STEPS_A_PASS = 64
BATCHES_IN_VAIN = 20  # without a smaller file; live jobs may be growing as fast as history is deleted
REST = 4.0
LEAST_REST_S = 0.005

# Jobs that are looked up together for their logs, and the pause after it: nobody waits for this.
JOBS_A_LOOK = 50
LOOK_PAUSE_S = 0.05

Key = tuple[str, int]


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How much history is kept; 0 sets no limit."""

    days: int
    max_jobs: int
    max_bytes: int


class AttemptFiles(Protocol):
    """What attempts leave on disk: see executors.attempt_files. Called in threads."""

    def folders(self) -> set[Key]: ...
    def remove_folder(self, job_id: str, claim_no: int) -> bool: ...
    def remove_empty_logs(self, job_id: str, claim_no: int) -> None: ...
    def evidence(self, job_id: str, claim_no: int, error: str) -> str | None: ...
    def remove_logs(self, jobs: Iterable[Key]) -> None: ...
    def remove_artifacts(self, job_ids: Iterable[str]) -> int: ...
    def with_artifacts(self) -> list[str]: ...
    def log_folders(self) -> list[str]: ...
    def logs_in(self, folder: str) -> set[Key]: ...


class Janitor:
    """Makes a pass at the start, then every hour while there is history, and sooner where many jobs end.

    A pass deletes in small batches with rests between them, so that enqueueing stays quick meanwhile. Rows go first,
    their logs after the commit; logs that lost their row in a crash between the two are looked for once in the life
    of a daemon.
    """

    def __init__(self, store: Store, files: AttemptFiles, retention: Retention, clock: Clock) -> None:
        self._store = store
        self._files = files
        self._retention = retention
        self._clock = clock
        self._tasks = Background()
        self._at_work = asyncio.Lock()
        self._news = asyncio.Event()
        self._ends = 0
        self._enough = 1
        self._artifacts_deleted = 0

    def start(self) -> None:
        self._tasks.spawn(supervised("the janitor", self._run), "the janitor")
        self._tasks.spawn(self._tried(lambda: self._remove_lost_logs(LOOK_PAUSE_S)), "looking for lost logs")

    async def stop(self) -> None:
        """Between two batches, or with one whose logs are found at the next start."""
        await self._tasks.stop()

    def on_changes(self, changes: Sequence[Change]) -> None:
        self._ends += sum(change.after in FINAL for change in changes)
        if self._ends >= self._enough:
            self._news.set()

    def make_room(self) -> None:
        """Make a whole pass now, as the disk is nearly full."""
        self._tasks.spawn(self._tried(lambda: self.maintain(force_vacuum=False)), "making room")

    async def maintain(self, *, force_vacuum: bool) -> Maintained:
        """Make a whole pass now, and give free pages back to the file system: some, or all of them."""
        async with self._at_work:  # one pass after the other, each with what it did itself
            before = await self._store.size_bytes()
            artifacts = self._artifacts_deleted
            await self._remove_lost_folders()
            deleted = await self._purge_all()
            lost = await self._remove_lost_logs(0)
            vacuumed = await self._give_back(None if force_vacuum else STEPS_A_PASS)
            return Maintained(
                vacuum_run=vacuumed,
                jobs_deleted=deleted,
                artifacts_deleted=self._artifacts_deleted - artifacts + lost,
                db_size_before=before,
                db_size_after=await self._store.size_bytes(),
            )

    async def clean(self) -> int:
        """Delete what is over its retention; how many jobs that were."""
        async with self._at_work:
            return await self._purge_all()

    async def _purge_all(self) -> int:
        deleted = await self._purge_old()
        deleted += await self._purge_for_space()
        if deleted:
            await self._purge_subjects()
            await self._store.checkpoint()
            log.info("deleted %d finished jobs with their logs", deleted)
        return deleted

    # --- when --------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await self._tried(self._remove_lost_folders)
        while True:
            self._ends = 0
            await self._tried(self.clean)
            await self._wait(INTERVAL_S if await self._has_history() else None)

    async def _tried(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except (RpcError, OSError) as error:
            log.warning("cleaning up is put off: %s", error)

    async def _has_history(self) -> bool:
        try:
            return any(row.counts[state] for row in await self._store.queues() for state in FINAL)
        except RpcError:
            return True

    async def _wait(self, seconds: float | None) -> None:
        self._enough = 1 if self._retention.max_bytes or seconds is None else ENDS_PER_PASS
        self._news.clear()
        if self._ends < self._enough:  # those of the time of the pass count
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()
        await asyncio.sleep(LEAST_INTERVAL_S)

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def _purge_old(self) -> int:
        days, keep = self._retention.days, self._retention.max_jobs
        if not days and not keep:
            return 0
        deleted, more = 0, True
        while more:
            before = self._clock.now_ms() - days * DAY_MS if days else None
            count, more = await self._purge(Purge(finished_before=before, keep=keep or None, limit=ROWS_A_BATCH))
            deleted += count
        return deleted

    async def _purge_for_space(self) -> int:
        """Oldest first, until the file is small enough. Free pages in it count: they are given back first."""
        limit, deleted, in_vain, more = self._retention.max_bytes, 0, 0, True
        while limit and (size := await self._store.size_bytes()) > limit:
            if await self._give_back(STEPS_A_PASS):
                in_vain = 0
            elif more and in_vain < BATCHES_IN_VAIN:
                rows = await self._rows_in(size - limit, size)
                count, more = await self._purge(Purge(finished_before=EVER, limit=rows))
                deleted += count
                in_vain += 1
            else:
                log.warning("the database stays above max_db_size_mb; %d finished jobs were deleted", deleted)
                break
        return deleted

    async def _rows_in(self, part: int, size: int) -> int:
        """About how many jobs take this part of the size, for one batch."""
        jobs = sum(sum(row.counts.values()) for row in await self._store.queues())
        return min(max(part * jobs // size, LEAST_ROWS), ROWS_A_BATCH)

    async def _purge(self, purge: Purge) -> tuple[int, bool]:
        """Delete one batch, then its logs, and rest; how many jobs went, and whether there are more."""
        began = self._clock.monotonic()
        purged = await self._store.purge(purge)
        took = self._clock.monotonic() - began
        if purged.jobs:
            await asyncio.to_thread(self._files.remove_logs, purged.jobs)
            job_ids = [job_id for job_id, _ in purged.jobs]
            self._artifacts_deleted += await asyncio.to_thread(self._files.remove_artifacts, job_ids)
        await self._rest(took)
        return len(purged.jobs), purged.more

    async def _purge_subjects(self) -> None:
        while await self._store.purge_subjects(ROWS_A_BATCH) == ROWS_A_BATCH:
            await self._rest(0)

    async def _rest(self, took: float) -> None:
        await asyncio.sleep(max(LEAST_REST_S, REST * took))

    # --- space -------------------------------------------------------------------------------------------------------

    async def _give_back(self, steps: int | None) -> bool:
        """Return free pages to the system, in short steps; None: all of them. Whether that succeeded."""
        await self._store.checkpoint()
        before = await self._store.size_bytes()
        left = 0
        free: int | None = None
        while steps is None or steps > 0:
            steps = None if steps is None else steps - 1
            began = self._clock.monotonic()
            left = await self._store.compact(PAGES_A_STEP)
            if not left or (free is not None and left >= free):
                break
            free = left
            await self._rest(self._clock.monotonic() - began)
        await self._store.checkpoint()
        return not left if steps is None else await self._store.size_bytes() < before

    # --- what a crash left -------------------------------------------------------------------------------------------

    async def _remove_lost_folders(self) -> None:
        """Folders whose claim has ended. They are listed before the rows, so none is of a claim that comes after."""
        folders = await asyncio.to_thread(self._files.folders)
        if not folders:
            return
        running = {(job.job_id, job.claim_no) for job in await self._store.running()}
        for job_id, claim_no in folders - running:
            if not await asyncio.to_thread(self._files.remove_folder, job_id, claim_no):
                log.warning("the folder of attempt %d is still in use", claim_no, extra={"job_id": job_id})

    async def _remove_lost_logs(self, pause_s: float) -> int:
        """Logs and artifacts whose job is gone. They are listed before the rows, as above. How many artifacts."""
        artifacts = 0
        for folder in await asyncio.to_thread(self._files.log_folders):
            logs = sorted(await asyncio.to_thread(self._files.logs_in, folder))
            for start in range(0, len(logs), JOBS_A_LOOK):
                some = logs[start : start + JOBS_A_LOOK]
                known = await self._store.get_many([job_id for job_id, _ in some])
                lost = [(job_id, claim_no) for job_id, claim_no in some if job_id not in known]
                if lost:
                    await asyncio.to_thread(self._files.remove_logs, lost)
                await asyncio.sleep(pause_s)
        job_ids = await asyncio.to_thread(self._files.with_artifacts)
        for start in range(0, len(job_ids), JOBS_A_LOOK):
            some_ids = job_ids[start : start + JOBS_A_LOOK]
            there = await self._store.get_many(some_ids)
            gone = [job_id for job_id in some_ids if job_id not in there]
            artifacts += await asyncio.to_thread(self._files.remove_artifacts, gone)
            await asyncio.sleep(pause_s)
        return artifacts
