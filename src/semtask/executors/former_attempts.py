"""What became of the jobs of a former daemon: the facts in the attempt folders and in the process table.

No timer decides anything here: see docs/adr/0004-facts-instead-of-timers-in-recovery.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.leftovers import end_leftovers
from semtask.executors.shim_end import unlocked
from semtask.executors.sub_process import outcome_of
from semtask.host import identity, procfs
from semtask.launch.folder import AttemptFolder
from semtask.model import outcome
from semtask.model.job import ExecutionMode, Job
from semtask.model.outcome import Outcome
from semtask.telemetry.counters import ZOMBIES_CLEANED
from semtask.telemetry.logs import about

log = logging.getLogger("semtask.recovery")

PATIENCE_S = 5.0


class FormerTasks(Protocol):
    """Judges the tasks among the jobs: see workers.former."""

    async def judge(self, job: Job) -> Outcome | None: ...
    async def wait_unlocked(self, job: Job) -> None: ...
    async def remove_abandoned(self) -> None: ...


class FormerAttempts:
    """Judges RUNNING jobs that another daemon claimed; `tasks` judges those that are no commands.

    `count(ZOMBIES_CLEANED, n)` is called when processes were found and killed. `patience_s` bounds how long
    one call of `judge` tries to end processes that survive SIGKILL.
    """

    def __init__(
        self,
        attempts: AttemptsDir,
        tasks: FormerTasks,
        count: Callable[[str, int], None],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._attempts = attempts
        self._tasks = tasks
        self._count = count
        self._patience_s = patience_s

    async def judge(self, job: Job) -> Outcome | None:
        """How the attempt ended. None: processes of it are still there, so it is still running; see `wait_unlocked`.

        With an outcome the claim is given up for good: nothing of it runs, and a late shim starts nothing.
        """
        if job.execution_mode is ExecutionMode.IN_PROCESS:
            return await self._tasks.judge(job)
        folder = self._attempts.attempt(job.job_id, job.claim_no)
        same_place = (
            job.claim is not None
            and job.claim.boot_id == procfs.boot_id()
            and job.claim.attempts_id == self._attempts.attempts_id
        )
        with folder.locked() as free:
            if not free:
                return None
            record = folder.record()
            if record is not None:
                return outcome_of(record)
            # A row that knows the command outweighs a folder that somebody has removed.
            never_started = same_place and job.process is None and folder.started() is None
            # In the lock: a shim that comes after this finds the poison, one that came before would hold the lock.
            folder.poison()
        if never_started:
            if not folder.exists():
                return outcome.never_ran("the daemon died before it prepared the command")
            return outcome.never_ran("the daemon died before the command was started")
        if not await self._end_leftovers(job, folder):
            return None
        return outcome.interrupted("the daemon died while the command ran, and its end was not recorded")

    async def wait_unlocked(self, job: Job) -> None:
        """Wait until no shim holds the attempt, or the worker that had it, any more."""
        if job.execution_mode is ExecutionMode.IN_PROCESS:
            await self._tasks.wait_unlocked(job)
        else:
            await unlocked(self._attempts.attempt(job.job_id, job.claim_no))

    async def remove_abandoned(self) -> None:
        """Remove what former workers left, each as soon as nothing of it runs; to be run once, beside other work."""
        await self._tasks.remove_abandoned()

    async def _end_leftovers(self, job: Job, folder: AttemptFolder) -> bool:
        """Whether nothing of the attempt is left that can be found."""
        if job.claim is None or self._attempts.is_foreign(job.claim.attempts_id):
            return True
        started = folder.started()
        command = (identity.from_mark(started.command) if started else None) or job.process
        killed: set[int] = set()
        try:
            async with asyncio.timeout(self._patience_s):
                await end_leftovers(job.claim.nonce, command, killed)
        except TimeoutError:
            text = "processes of %s survive SIGKILL; its job stays RUNNING until they are gone"
            log.warning(text, folder.path, extra=about(job))
            return False
        finally:
            if killed:
                self._count(ZOMBIES_CLEANED, len(killed))
        return True
